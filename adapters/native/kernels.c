/* CPU kernels: linear layers with their adapters, attention over the KV cache and whole decoder layers for the engine;
 * attention of packed rows, GELU, LoRA and cross-entropy with their gradients for training.
 *
 * Plain C with OpenMP pragmas and no header of torch. The shared object is linked without an OpenMP runtime of its
 * own: the symbols resolve to the one that torch has loaded, so that both use the same threads.
 *
 * A matrix W [n, k] of a product y = x W^T is kept in panels of 16 rows of W:
 *
 *     float      panel[k][16]                      the last panel padded with zeros
 *     bfloat16   panel[ceil(k / 2)][width][2]      what one vdpbf16ps multiplies; the last panel may be narrower, and
 *                                                  an odd k is padded with zeros
 *     int8       panel[ceil(k / 4)][width][4]      the same for vpdpbusd; base weights only
 *
 * Base weights, A (n = rank, k = in) and B (n = out, k = rank) all have this layout, so one tile of code serves all
 * three. Which code runs is decided by the machine that it runs on: bfloat16 needs AVX512-BF16, int8 AVX512-VNNI,
 * float32 needs nothing.
 *
 * This file has the inner loops of each type; int8.h, included for each, has those of int8 weights, and body.h has
 * everything around them. The other headers are for bfloat16 alone.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define INT8 1 /* there is code for it */
#else
#define INT8 0
#endif

#define PANEL 16      /* rows of W side by side */
#define TILE 16       /* most rows of x that one tile computes */
#define MAX_RANK 1024 /* of an adapter */
#define KEYS 64       /* keys per block of attention */
#define MAX_HEAD 256  /* head dimension */
#define QUERIES 8     /* rows of queries that attend together */
#define WIDE 32       /* keys, or values of a head, that such rows are multiplied with at once */
#define STATE 16384   /* unfinished outputs, in values, of the queries that a block of keys is laid out for */

typedef uint16_t bf16;

/* A frozen linear layer: y = x W^T + bias. k is even in bfloat16. In int8 the layer has scales, else they are NULL.
 * apart: where rows of x would fall on each other in the cache, how many values they are to be apart in a copy; or 0. */
typedef struct {
    int64_t n, k, apart;
    const void *weight;  /* panels */
    const void *bias;    /* [n] or NULL */
    const float *scale;  /* [n] */
    const int32_t *sums; /* [n], of each output's weights as int8 */
} Linear;

/* One module's matrices in one adapter slot; rank 0 where the adapter leaves the module alone. */
typedef struct {
    int64_t rank;
    const void *a, *b;
} Slot;

/* Rows start:stop of a batch, at most TILE of them, under one slot. */
typedef struct {
    int64_t slot, start, stop;
} Rows;

/* Tokens start:start+count of one sequence. row is its row of the KV cache, which holds context tokens before them;
 * a text that is not cached has row -1. */
typedef struct {
    int64_t start, count, row, context;
} Span;

/* Strides are in elements. q, k, v: [token, head, head_dim] with the last stride 1; out: [token, heads, head_dim]
 * contiguous; caches: [rows, kv_heads, length, head_dim] contiguous. */
typedef struct {
    const void *q, *k, *v;
    void *out, *key_cache, *value_cache;
    int64_t q_token, q_head, k_token, k_head, v_token, v_head;
    int64_t heads, kv_heads, head_dim, length;
    int64_t causal, window; /* window 0: unlimited */
    float scale;
} Attention;

/* A linear layer and its adapter slots; slots is NULL while no adapter targets it. */
typedef struct {
    const Linear *linear;
    const Slot *slots;
} Module;

/* A decoder layer of the Llama kind: x += o(attend(rope(q, k), v)); x += down(silu(gate) * up), each on RMSNorm(x). */
typedef struct {
    const Module *q, *k, *v, *o, *gate, *up, *down;
    const void *input_norm, *post_norm; /* [hidden] */
    const void *q_norm, *k_norm;        /* [head_dim] or NULL */
    float input_eps, post_eps, q_eps, k_eps;
    Attention attention; /* without q, k, v and out */
} Layer;

/* What the layers of one forward pass share. cos, sin: [total, head_dim]. copy has room for a copy of x, for the largest
 * of a layer: in int8 total * (k + 136) bytes, else total * apart values. */
typedef struct {
    int64_t total, spans, rows, threads;
    const Span *span;
    const Rows *row;
    const void *cos, *sin;
    void *copy;
} Batch;

/* Rows of x in eight bits: x[m] = step[m] * (q[m] - zero[m]). */
typedef struct {
    uint8_t *q;
    float *step;
    int32_t *zero;
    int64_t ld; /* an odd number of cache lines, so that rows do not fall on each other in the cache */
} Rounded;

/* Leaves of the float32 code are compiled for each of these and chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* The keys that query i of a span may attend to: [*first, *last). */
static void visible(const Attention *at, const Span *span, int64_t i, int64_t *first, int64_t *last) {
    *last = span->context + (at->causal ? i + 1 : span->count);
    *first = at->window ? max64(0, *last - at->window) : 0;
}

/* Rows, each a query of one head, that a block of keys is laid out for at once in bfloat16. */
static int64_t together(int64_t dim) { return STATE / ((dim + WIDE - 1) / WIDE * WIDE) / QUERIES * QUERIES; }

/* In how many parts of so many rows the longest span comes. */
static int64_t most_parts(const Span *spans, int64_t count, int64_t each, int64_t dim) {
    int64_t rows = 1;
    for (int64_t i = 0; i < count; i++) rows = max64(rows, spans[i].count * each);
    return (rows + together(dim) - 1) / together(dim);
}

/* A matrix [rows, depth] of four-byte units, and where its panels go. */
typedef struct {
    const uint32_t *matrix;
    int64_t rows, depth;
    uint32_t *panels;
} Packing;

/* Matrices into panels, the last one of each as narrow as need be. One thread. */
void tenora_pack(const Packing *items, int64_t count) {
    for (const Packing *item = items; item < items + count; item++) {
        uint32_t *to = item->panels;
        for (int64_t r = 0; r < item->rows; r += PANEL) {
            const int64_t width = min64(PANEL, item->rows - r);
            for (int64_t d = 0; d < item->depth; d++)
                for (int64_t j = 0; j < width; j++) *to++ = item->matrix[(r + j) * item->depth + d];
        }
    }
}

/* How far apart the copied rows of x are that a linear layer in its own type reads; 0: it reads x itself. The lines of a
 * few rows fit into the cache wherever they are. */
static int64_t apart(const Linear *linear, const Batch *batch) { return batch->total > 4 ? linear->apart : 0; }

/* Whether a linear layer reads a copy of x. */
static int copies(const Linear *linear, const Batch *batch) { return linear->scale || apart(linear, batch); }

/* Where the batch keeps rows of k values in eight bits. */
static Rounded rounded(const Batch *batch, int64_t k) {
    const int64_t ld = ((k + 63) / 64 | 1) * 64;
    float *step = (float *)((uint8_t *)batch->copy + batch->total * ld);
    return (Rounded){batch->copy, step, (int32_t *)(step + batch->total), ld};
}

/* The same without the first m rows. */
static inline Rounded rows_from(Rounded x, int64_t m) {
    return (Rounded){x.q + m * x.ld, x.step + m, x.zero + m, x.ld};
}

#if INT8
#define NOT_FINITE 0x99 /* for vfpclassps: quiet NaN, infinities, signalling NaN */
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
static inline __mmask16 lanes(int64_t n) { return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1); }
typedef int32_t __attribute__((may_alias, aligned(1))) unit; /* four bytes of a row of x */
static inline __m512i four(const void *x) { return _mm512_set1_epi32(*(const unit *)x); }
/* Written out because GCC 12 moves every sum to another register and back around its own. */
static inline __m512i dot4(__m512i sum, __m512i x, __m512i w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}
#pragma GCC pop_options

int tenora_has_int8(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
int tenora_has_int8(void) { return 0; }
#endif

/* ── float32, on any machine ─────────────────────────────────────────────────────────────────────────────────── */

typedef float vec __attribute__((vector_size(64), aligned(4)));

/* As TILE_BF16 below, for a panel of 16. */
#define TILE_F32(ROWS)                                                                                                \
    INLINE void tile_f32_##ROWS(const float *x, int64_t ldx, const float *panel, int64_t k, int64_t width,           \
                                const float *start, int64_t lds, float *y, int64_t ldy) {                            \
        vec sum[ROWS] = {{0}};                                                                                       \
        for (int64_t i = 0; i < k; i++) {                                                                            \
            const vec w = *(const vec *)(panel + i * PANEL);                                                         \
            _Pragma("GCC unroll 8") for (int m = 0; m < ROWS; m++) sum[m] += x[m * ldx + i] * w;                     \
        }                                                                                                            \
        _Pragma("GCC unroll 8") for (int m = 0; m < ROWS; m++) for (int64_t j = 0; j < width; j++) y[m * ldy + j] =  \
            sum[m][j] + (start ? start[m * lds + j] : 0.0f);                                                         \
    }

TILE_F32(8)
TILE_F32(4)
TILE_F32(1)

CLONES static void tile_f32(int64_t rows, const float *x, int64_t ldx, const float *panel, int64_t k, int64_t width,
                            const float *start, int64_t lds, float *y, int64_t ldy) {
#define STEP(ROWS)                                                                                                    \
    while (rows >= ROWS) {                                                                                           \
        tile_f32_##ROWS(x, ldx, panel, k, width, start, lds, y, ldy);                                                \
        x += ROWS * ldx, y += ROWS * ldy, rows -= ROWS;                                                              \
        if (start) start += ROWS * lds;                                                                              \
    }
    STEP(8) STEP(4) STEP(1)
#undef STEP
}

static void tiles_f32(int64_t rows, const float *x, int64_t ldx, const float *panel, int64_t k, int64_t width,
                      const float *start, int64_t lds, float *y, int64_t ldy) {
    tile_f32(rows, x, ldx, panel, k, min64(PANEL, width), start, lds, y, ldy);
    if (width > PANEL)
        tile_f32(rows, x, ldx, panel + k * PANEL, k, width - PANEL, start ? start + PANEL : NULL, lds, y + PANEL, ldy);
}

CLONES static void norm_f32(const float *x, const float *weight, float *y, int64_t n, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / (float)n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = weight[i] * (x[i] * scale);
}

/* x[:half], x[half:] turned by the angles of their position, in place. */
CLONES static void rotate_f32(float *x, const float *cosine, const float *sine, int64_t half) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosine[i] - b * sine[i];
        x[half + i] = b * cosine[half + i] + a * sine[half + i];
    }
}

/* gate = silu(gate) * up */
CLONES static void gate_f32(float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* One query head over keys [first, last), by blocks with a running maximum. */
CLONES static void attend_f32(const float *q, const float *keys, int64_t key_stride, const float *values,
                       int64_t value_stride, int64_t first, int64_t last, int64_t dim, float scale, float *out) {
    float acc[MAX_HEAD] = {0}, score[KEYS], top = -INFINITY, sum = 0;
    for (int64_t start = first; start < last; start += KEYS) {
        const int64_t count = min64(KEYS, last - start);
        float block = top;
        for (int64_t j = 0; j < count; j++) {
            const float *key = keys + (start + j) * key_stride;
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t d = 0; d < dim; d++) dot += q[d] * key[d];
            score[j] = dot * scale;
            block = score[j] > block ? score[j] : block;
        }
        const float shrink = expf(top - block);
        sum *= shrink;
#pragma omp simd
        for (int64_t d = 0; d < dim; d++) acc[d] *= shrink;
        for (int64_t j = 0; j < count; j++) {
            const float *value = values + (start + j) * value_stride, p = expf(score[j] - block);
            sum += p;
#pragma omp simd
            for (int64_t d = 0; d < dim; d++) acc[d] += p * value[d];
        }
        top = block;
    }
    for (int64_t d = 0; d < dim; d++) out[d] = acc[d] / sum;
}

#define TYPE float
#define F(NAME) NAME##_f32
#define PAIR 1
#if INT8
#define LOAD(P, MASK) _mm512_maskz_loadu_ps(MASK, P)
#define STORE(P, MASK, X) _mm512_mask_storeu_ps(P, MASK, X)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#include "int8.h"
#pragma GCC pop_options
#undef LOAD
#undef STORE
#endif
#include "body.h"

/* ── bfloat16, where the machine multiplies in it ────────────────────────────────────────────────────────────── */

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")

int tenora_has_bf16(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
static inline __m512 load(const bf16 *x, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, x)); }
static inline void store(bf16 *y, __mmask16 mask, __m512 x) {
    _mm256_mask_storeu_epi16(y, mask, (__m256i)_mm512_cvtneps_pbh(x));
}
static inline __m512bh pair(const bf16 *x) { return (__m512bh)four(x); }

/* y[m] = start[m] + x[m] panel^T for ROWS rows of x, bf16 in and out, summed in float32.
 * start is NULL (zero), the bias (lds 0) or y itself. CHAINS independent sums per row hide the latency of the dot. */
#define TILE_BF16(ROWS, CHAINS)                                                                                       \
    static void tile_##ROWS(const bf16 *x, int64_t ldx, const bf16 *panel, int64_t pairs, int64_t width,             \
                            const bf16 *start, int64_t lds, bf16 *y, int64_t ldy) {                                  \
        const __mmask16 mask = lanes(width);                                                                          \
        __m512 sum[CHAINS][ROWS];                                                                                    \
        _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) {                                                    \
            sum[0][m] = start ? load(start + m * lds, mask) : _mm512_setzero_ps();                                   \
            _Pragma("GCC unroll 4") for (int c = 1; c < CHAINS; c++) sum[c][m] = _mm512_setzero_ps();                \
        }                                                                                                            \
        int64_t i = 0;                                                                                               \
        for (; i + CHAINS <= pairs; i += CHAINS)                                                                     \
            _Pragma("GCC unroll 4") for (int c = 0; c < CHAINS; c++) {                                               \
                const bf16 *at = panel + (i + c) * width * 2;                                                        \
                const __m512bh w = (__m512bh)_mm512_maskz_loadu_epi32(mask, at);                                     \
                _mm_prefetch((const char *)(at + 1024), _MM_HINT_T0);                                                \
                _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) sum[c][m] =                                  \
                    _mm512_dpbf16_ps(sum[c][m], w, pair(x + m * ldx + 2 * (i + c)));                                 \
            }                                                                                                        \
        for (; i < pairs; i++) {                                                                                     \
            const __m512bh w = (__m512bh)_mm512_maskz_loadu_epi32(mask, panel + i * width * 2);                      \
            _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) sum[0][m] =                                      \
                _mm512_dpbf16_ps(sum[0][m], w, pair(x + m * ldx + 2 * i));                                           \
        }                                                                                                            \
        _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) {                                                    \
            _Pragma("GCC unroll 4") for (int c = 1; c < CHAINS; c++) sum[0][m] =                                     \
                _mm512_add_ps(sum[0][m], sum[c][m]);                                                                 \
            store(y + m * ldy, mask, sum[0][m]);                                                                     \
        }                                                                                                            \
    }

TILE_BF16(16, 1)
TILE_BF16(8, 1)
TILE_BF16(4, 2)
TILE_BF16(2, 4)
TILE_BF16(1, 4)

static void tile_bf16(int64_t rows, const bf16 *x, int64_t ldx, const bf16 *panel, int64_t pairs, int64_t width,
                      const bf16 *start, int64_t lds, bf16 *y, int64_t ldy) {
#define STEP(ROWS)                                                                                                    \
    while (rows >= ROWS) {                                                                                           \
        tile_##ROWS(x, ldx, panel, pairs, width, start, lds, y, ldy);                                                \
        x += ROWS * ldx, y += ROWS * ldy, rows -= ROWS;                                                              \
        if (start) start += ROWS * lds;                                                                              \
    }
    STEP(16) STEP(8) STEP(4) STEP(2) STEP(1)
#undef STEP
}

/* As TILE_BF16 for two whole panels: more products for every value of x that is read. */
#define TILE2_BF16(ROWS)                                                                                              \
    static void tile2_##ROWS(const bf16 *x, int64_t ldx, const bf16 *panel, int64_t pairs, const bf16 *start,        \
                             int64_t lds, bf16 *y, int64_t ldy) {                                                    \
        const bf16 *other = panel + pairs * PANEL * 2;                                                               \
        __m512 left[ROWS], right[ROWS];                                                                              \
        _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) {                                                    \
            left[m] = start ? load(start + m * lds, 0xffff) : _mm512_setzero_ps();                                   \
            right[m] = start ? load(start + m * lds + PANEL, 0xffff) : _mm512_setzero_ps();                          \
        }                                                                                                            \
        for (int64_t i = 0; i < pairs; i++) {                                                                        \
            const __m512bh a = (__m512bh)_mm512_loadu_si512(panel + i * PANEL * 2);                                  \
            const __m512bh b = (__m512bh)_mm512_loadu_si512(other + i * PANEL * 2);                                  \
            _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) {                                                \
                const __m512bh v = pair(x + m * ldx + 2 * i);                                                        \
                left[m] = _mm512_dpbf16_ps(left[m], a, v);                                                           \
                right[m] = _mm512_dpbf16_ps(right[m], b, v);                                                         \
            }                                                                                                        \
        }                                                                                                            \
        _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) {                                                    \
            store(y + m * ldy, 0xffff, left[m]);                                                                     \
            store(y + m * ldy + PANEL, 0xffff, right[m]);                                                            \
        }                                                                                                            \
    }

TILE2_BF16(12)
TILE2_BF16(8)

/* Up to two panels: those of the base, for many rows. */
static void tiles_bf16(int64_t rows, const bf16 *x, int64_t ldx, const bf16 *panel, int64_t pairs, int64_t width,
                       const bf16 *start, int64_t lds, bf16 *y, int64_t ldy) {
    if (width == 2 * PANEL && rows > TILE)
        for (; rows >= 8;) {
            const int64_t step = rows >= 12 ? 12 : 8;
            if (step == 12)
                tile2_12(x, ldx, panel, pairs, start, lds, y, ldy);
            else
                tile2_8(x, ldx, panel, pairs, start, lds, y, ldy);
            x += step * ldx, y += step * ldy, rows -= step;
            if (start) start += step * lds;
        }
    tile_bf16(rows, x, ldx, panel, pairs, min64(PANEL, width), start, lds, y, ldy);
    if (width > PANEL)
        tile_bf16(rows, x, ldx, panel + pairs * PANEL * 2, pairs, width - PANEL, start ? start + PANEL : NULL, lds,
                  y + PANEL, ldy);
}

/* e^x for x <= 0, relative error below 2e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
static inline __m512 exp_512(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x); /* in this order a NaN stays one */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* x is rounded before it is multiplied with the weight, as the models do. */
static void norm_bf16(const bf16 *x, const bf16 *weight, bf16 *y, int64_t n, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 v = load(x + i, lanes(n - i));
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sum) / (float)n + eps));
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(n - i);
        const __m512 rounded = widen((__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(load(x + i, mask), scale)));
        store(y + i, mask, _mm512_mul_ps(load(weight + i, mask), rounded));
    }
}

static void rotate_bf16(bf16 *x, const bf16 *cosine, const bf16 *sine, int64_t half) {
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = lanes(half - i);
        const __m512 a = load(x + i, mask), b = load(x + half + i, mask);
        const __m512 left = _mm512_mul_ps(b, load(sine + i, mask));
        const __m512 right = _mm512_mul_ps(a, load(sine + half + i, mask));
        store(x + i, mask, _mm512_fmsub_ps(a, load(cosine + i, mask), left));
        store(x + half + i, mask, _mm512_fmadd_ps(b, load(cosine + half + i, mask), right));
    }
}

static void gate_bf16(bf16 *gate, const bf16 *up, int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(n - i);
        const __m512 g = load(gate + i, mask), size = _mm512_abs_ps(g);
        /* sigmoid(|g|) by e^-|g| <= 1, then mirrored for negative g */
        const __m512 e = exp_512(_mm512_sub_ps(zero, size)), sum = _mm512_add_ps(one, e);
        const __mmask16 negative = _mm512_cmp_ps_mask(g, zero, _CMP_LT_OQ);
        const __m512 sigmoid = _mm512_div_ps(_mm512_mask_blend_ps(negative, one, e), sum);
        store(gate + i, mask, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), load(up + i, mask)));
    }
}

/* One query head over keys [first, last), as attend_f32; DIM is a constant where the compiler is to unroll. */
static inline __attribute__((always_inline)) void attend_dim(const bf16 *q, const bf16 *keys, int64_t key_stride,
                                                             const bf16 *values, int64_t value_stride, int64_t first,
                                                             int64_t last, const int64_t dim, float scale, bf16 *out) {
    const int64_t wide = (dim + 31) / 32, parts = (dim + 15) / 16;
    __m512bh query[MAX_HEAD / 32];
    __m512 acc[MAX_HEAD / 16];
    float score[KEYS], top = -INFINITY, sum = 0;
#define MASK32(D) (dim - 32 * (D) >= 32 ? 0xffffffffu : (1u << (dim - 32 * (D))) - 1)
#define MASK16(D) (__mmask16)(dim - 16 * (D) >= 16 ? 0xffffu : (1u << (dim - 16 * (D))) - 1)
    for (int64_t d = 0; d < wide; d++) query[d] = (__m512bh)_mm512_maskz_loadu_epi16(MASK32(d), q + 32 * d);
    for (int64_t d = 0; d < parts; d++) acc[d] = _mm512_setzero_ps();
    for (int64_t start = first; start < last; start += KEYS) {
        const int64_t count = min64(KEYS, last - start), vectors = (count + 15) / 16;
        for (int64_t j = 0; j < count; j++) {
            const bf16 *key = keys + (start + j) * key_stride;
            __m512 dot = _mm512_setzero_ps();
            for (int64_t d = 0; d < wide; d++)
                dot = _mm512_dpbf16_ps(dot, query[d], (__m512bh)_mm512_maskz_loadu_epi16(MASK32(d), key + 32 * d));
            score[j] = _mm512_reduce_add_ps(dot) * scale;
        }
        for (int64_t j = count; j < 16 * vectors; j++) score[j] = -INFINITY;
        __m512 most = _mm512_set1_ps(top), total = _mm512_setzero_ps();
        for (int64_t j = 0; j < vectors; j++) most = _mm512_max_ps(most, _mm512_loadu_ps(score + 16 * j));
        const float block = _mm512_reduce_max_ps(most);
        for (int64_t j = 0; j < vectors; j++) {
            const __mmask16 real = (__mmask16)((1u << min64(16, count - 16 * j)) - 1);
            const __m512 e = exp_512(_mm512_sub_ps(_mm512_loadu_ps(score + 16 * j), _mm512_set1_ps(block)));
            _mm512_storeu_ps(score + 16 * j, e);
            total = _mm512_add_ps(total, _mm512_maskz_mov_ps(real, e));
        }
        if (start > first) {
            const float shrink = expf(top - block);
            sum *= shrink;
            for (int64_t d = 0; d < parts; d++) acc[d] = _mm512_mul_ps(acc[d], _mm512_set1_ps(shrink));
        }
        sum += _mm512_reduce_add_ps(total);
        top = block;
        for (int64_t j = 0; j < count; j++) {
            const bf16 *value = values + (start + j) * value_stride;
            const __m512 p = _mm512_set1_ps(score[j]);
            for (int64_t d = 0; d < parts; d++) acc[d] = _mm512_fmadd_ps(p, load(value + 16 * d, MASK16(d)), acc[d]);
        }
    }
    const __m512 scale_out = _mm512_set1_ps(1.0f / sum);
    for (int64_t d = 0; d < parts; d++) store(out + 16 * d, MASK16(d), _mm512_mul_ps(acc[d], scale_out));
#undef MASK32
#undef MASK16
}

static void attend_bf16(const bf16 *q, const bf16 *keys, int64_t key_stride, const bf16 *values, int64_t value_stride,
                        int64_t first, int64_t last, int64_t dim, float scale, bf16 *out) {
#define WITH(DIM) attend_dim(q, keys, key_stride, values, value_stride, first, last, DIM, scale, out)
    switch (dim) {
    case 32: WITH(32); break;
    case 64: WITH(64); break;
    case 128: WITH(128); break;
    default: WITH(dim);
    }
#undef WITH
}

#include "dropout.h"
#include "attention.h"
#include "packed.h"
#include "gelu.h"
#include "lora.h"
#include "loss.h"

#undef TYPE
#undef F
#undef PAIR
#define TYPE bf16
#define F(NAME) NAME##_bf16
#define PAIR 2
#define LOAD(P, MASK) load(P, MASK)
#define STORE(P, MASK, X) store(P, MASK, X)
#pragma GCC push_options
#pragma GCC target("avx512vnni")
#include "int8.h"
#pragma GCC pop_options
#include "body.h"

/* The likeliest token of each row of logits [rows, n], the first of equals; -1 where any of them is not finite. */
void tenora_argmax_bf16(const bf16 *logits, int64_t rows, int64_t n, int64_t *best, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t m = 0; m < rows; m++) {
        const bf16 *row = logits + m * n;
        __m512 most = _mm512_set1_ps(-INFINITY);
        __mmask16 wild = 0;
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 mask = lanes(n - i);
            const __m512 v = load(row + i, mask);
            wild |= _mm512_mask_fpclass_ps_mask(mask, v, NOT_FINITE);
            most = _mm512_mask_max_ps(most, mask, most, v);
        }
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most));
        best[m] = -1;
        for (int64_t i = 0; !wild && i < n && best[m] < 0; i += 16) {
            const __mmask16 hit = _mm512_mask_cmp_ps_mask(lanes(n - i), load(row + i, lanes(n - i)), top, _CMP_EQ_OQ);
            if (hit) best[m] = i + __builtin_ctz(hit);
        }
    }
}

#pragma GCC pop_options
#else

int tenora_has_bf16(void) { return 0; }

#endif
