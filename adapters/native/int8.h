/* Products with weights in int8, for one type of activations. Included by kernels.c with
 *
 *     TYPE           float or bf16
 *     F(NAME)        NAME with the type's suffix
 *     LOAD(P, MASK), STORE(P, MASK, X)     values of TYPE as floats
 *
 * A weight is scale[o] * w with w in -127..127 and a scale per output. A row of x is rounded once for all products that
 * read it: x = step * (q - zero) with q in 0..255, zero being the whole number that stands for 0. So
 *
 *     x W^T = step * scale * (q w^T - zero * sums),   sums[o] = sum of w[o],
 *
 * and everything in the bracket is exact: a row's result does not depend on the rows beside it. 255 * 127 * k fits int32
 * up to k = MAX_INT8.
 */

/* One row. What is not finite makes the step NaN, and so the whole result. */
static void F(round_row)(const TYPE *x, int64_t k, uint8_t *q, float *step, int32_t *zero) {
    __m512 low = _mm512_setzero_ps(), high = low;
    __mmask16 wild = 0;
    for (int64_t i = 0; i < k; i += 16) {
        const __m512 v = LOAD(x + i, lanes(k - i));
        wild |= _mm512_fpclass_ps_mask(v, NOT_FINITE);
        low = _mm512_min_ps(low, v);
        high = _mm512_max_ps(high, v);
    }
    const float least = _mm512_reduce_min_ps(low), width = (_mm512_reduce_max_ps(high) - least) / 255;
    const float inverse = width > 1e-37f ? 1 / width : 0; /* smaller ones are zero */
    const __m512 offset = _mm512_set1_ps(rintf(-least * inverse));
    *step = wild ? NAN : width;
    *zero = (int32_t)_mm512_cvtss_f32(offset);
    for (int64_t i = 0; i < k; i += 16) {
        const __m512 v = _mm512_fmadd_ps(LOAD(x + i, lanes(k - i)), _mm512_set1_ps(inverse), offset);
        const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_setzero_si512());
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtusepi32_epi8(whole));
    }
}

/* The same as TILE_BF16 for one panel of int8; x, start and y begin at the tile's first row, the rest of linear at its
 * first output. */
#define TILE_INT8(ROWS, CHAINS)                                                                                       \
    static void F(tile_int8_##ROWS)(const Rounded *x, const int8_t *panel, int64_t quads, int64_t width,             \
                                    const float *scale, const int32_t *sums, const TYPE *start, int64_t lds,         \
                                    TYPE *y, int64_t ldy) {                                                          \
        const __mmask16 mask = lanes(width);                                                                          \
        __m512i sum[CHAINS][ROWS];                                                                                   \
        _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++)                                                      \
            _Pragma("GCC unroll 4") for (int c = 0; c < CHAINS; c++) sum[c][m] = _mm512_setzero_si512();             \
        int64_t i = 0;                                                                                               \
        for (; i + CHAINS <= quads; i += CHAINS)                                                                     \
            _Pragma("GCC unroll 4") for (int c = 0; c < CHAINS; c++) {                                               \
                const int8_t *at = panel + (i + c) * width * 4;                                                      \
                const __m512i w = _mm512_maskz_loadu_epi32(mask, at);                                                \
                _mm_prefetch((const char *)(at + 2048), _MM_HINT_T0);                                                \
                _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) sum[c][m] =                                  \
                    dot4(sum[c][m], four(x->q + m * x->ld + 4 * (i + c)), w);                         \
            }                                                                                                        \
        for (; i < quads; i++) {                                                                                     \
            const __m512i w = _mm512_maskz_loadu_epi32(mask, panel + i * width * 4);                                 \
            _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) sum[0][m] =                                      \
                dot4(sum[0][m], four(x->q + m * x->ld + 4 * i), w);                                   \
        }                                                                                                            \
        const __m512 weight = _mm512_maskz_loadu_ps(mask, scale);                                                    \
        const __m512i total = _mm512_maskz_loadu_epi32(mask, sums);                                                  \
        _Pragma("GCC unroll 16") for (int m = 0; m < ROWS; m++) {                                                    \
            _Pragma("GCC unroll 4") for (int c = 1; c < CHAINS; c++) sum[0][m] =                                     \
                _mm512_add_epi32(sum[0][m], sum[c][m]);                                                              \
            const __m512i shift = _mm512_mullo_epi32(total, _mm512_set1_epi32(x->zero[m]));                          \
            const __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[0][m], shift));                             \
            const __m512 from = start ? LOAD(start + m * lds, mask) : _mm512_setzero_ps();                           \
            const __m512 size = _mm512_mul_ps(weight, _mm512_set1_ps(x->step[m]));                                   \
            STORE(y + m * ldy, mask, _mm512_fmadd_ps(whole, size, from));                                            \
        }                                                                                                            \
    }

TILE_INT8(16, 1)
TILE_INT8(8, 1)
TILE_INT8(4, 2)
TILE_INT8(2, 4)
TILE_INT8(1, 4)
#undef TILE_INT8

static void F(tile_int8)(int64_t rows, Rounded x, const int8_t *panel, int64_t quads, int64_t width,
                         const float *scale, const int32_t *sums, const TYPE *start, int64_t lds, TYPE *y,
                         int64_t ldy) {
#define STEP(ROWS)                                                                                                    \
    while (rows >= ROWS) {                                                                                           \
        F(tile_int8_##ROWS)(&x, panel, quads, width, scale, sums, start, lds, y, ldy);                               \
        x = rows_from(x, ROWS), y += ROWS * ldy, rows -= ROWS;                                                       \
        if (start) start += ROWS * lds;                                                                              \
    }
    STEP(16) STEP(8) STEP(4) STEP(2) STEP(1)
#undef STEP
}

/* As share_linear. */
static void F(share_int8)(const Linear *linear, Rounded x, const TYPE *start, TYPE *y, int64_t total) {
    const int64_t n = linear->n, quads = (linear->k + 3) / 4, panels = (n + PANEL - 1) / PANEL;
    const int64_t deep = max64(TILE, (1 << 19) / x.ld / TILE * TILE); /* rows in the L2 cache */
    const int8_t *weight = linear->weight;
    const TYPE *bias = linear->bias;
    for (int64_t m = 0; m < total; m += deep) {
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < panels; p++) {
            const int64_t o = p * PANEL;
            const TYPE *from = start ? start + m * n + o : bias ? bias + o : NULL;
            F(tile_int8)(min64(deep, total - m), rows_from(x, m), weight + o * quads * 4, quads, min64(PANEL, n - o),
                         linear->scale + o, linear->sums + o, from, start ? n : 0, y + m * n + o, n);
        }
    }
}
