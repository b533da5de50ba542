/* Attention of rows that lie end to end in a batch, with its gradients, in bfloat16. Included by kernels.c after
 * attention.h.
 *
 * The rows form a tree: a row's own tokens are those of its span, and the span's context are tokens of rows before it,
 * which paths names from span.row on. As in attention.h, what a query may not see is multiplied by zero.
 */

typedef struct {
    const Span *spans;
    const int64_t *paths;
    int64_t count, tokens, threads;
    float *logsum; /* [tokens, heads]: of the sum of the exponentials of a query's scores; or NULL */
    Dropout dropout; /* of the shares */
} Packed;

/* Gradients of a batch's outputs, queries, keys and values, [tokens, heads or kv_heads, head_dim] contiguous. sums has
 * room for [heads, tokens, 2, wide] values; wide is head_dim rounded up to WIDE. */
typedef struct {
    const bf16 *dout;
    bf16 *dq, *dk, *dv;
    float *sums;
} Gradients;

static const Dropout *dropout_of(const Packed *packed) { return packed->dropout.dropped ? &packed->dropout : NULL; }

/* What the queries of a span see of the batch's keys or values. */
static Seen seen_by(const Packed *packed, const Span *span, const bf16 *of_head, int64_t stride) {
    return (Seen){of_head, packed->paths + span->row, span->context, of_head + span->start * stride, stride};
}

/* out = dropout(softmax(q k^T scale)) v for the queries of all spans; packed->logsum is left for the backward pass. */
void tenora_packed_attention_bf16(const Attention *at, const Packed *packed) {
    const int64_t group = at->heads / at->kv_heads, most = together(at->head_dim);
    const int64_t parts = most_parts(packed->spans, packed->count, group, at->head_dim);
#pragma omp parallel for schedule(dynamic, 1) num_threads(packed->threads)
    for (int64_t i = 0; i < packed->count * at->kv_heads * parts; i++) {
        const Span *span = &packed->spans[i / (at->kv_heads * parts)];
        const int64_t head = i / parts % at->kv_heads, row = i % parts * most;
        const int64_t n = min64(most, span->count * group - row);
        const Queries queries = {at, span, head * group, group, packed->logsum, dropout_of(packed)};
        const Seen keys = seen_by(packed, span, (const bf16 *)at->k + head * at->k_head, at->k_token);
        const Seen values = seen_by(packed, span, (const bf16 *)at->v + head * at->v_head, at->v_token);
        if (n > 0) attend_rows_bf16(&queries, row, n, &keys, &values);
    }
}

/* Up to KEYS queries of a span under one head, laid out for their products with blocks of keys. */
typedef struct {
    const Attention *at;
    const Span *span;
    int64_t first, count; /* queries of the span */
    bf16 q[KEYS * MAX_HEAD], dout[KEYS * MAX_HEAD]; /* rows, padded to whole pairs */
    bf16 q_panels[KEYS * MAX_HEAD], dout_panels[KEYS * MAX_HEAD];
    float logsum[KEYS], delta[KEYS]; /* delta: the output times its gradient, summed */
    const Dropout *dropout;          /* or NULL */
    float more;                      /* its scale */
    uint64_t seeds[KEYS];            /* of the queries' dropout */
    float dq[KEYS * MAX_HEAD];
} Block;

static void lay_block(Block *block, const Packed *packed, const Gradients *gradients, int64_t head) {
    const Attention *at = block->at;
    const int64_t dim = at->head_dim, ld = (dim + 1) / 2 * 2, token = block->span->start + block->first;
    const int64_t stride = at->heads * dim, wide = (dim + WIDE - 1) / WIDE * WIDE, place = token * stride + head * dim;
    const bf16 *dout = gradients->dout + place, *out = (const bf16 *)at->out + place;
    const Seen q = {NULL, NULL, 0, (const bf16 *)at->q + token * at->q_token + head * at->q_head, at->q_token};
    const Seen d = {NULL, NULL, 0, dout, stride};
    for (int64_t r = 0; r < block->count; r++) {
        block->q[r * ld + ld - 1] = block->dout[r * ld + ld - 1] = 0;
        memcpy(block->q + r * ld, seen_at(&q, r), dim * sizeof(bf16));
        memcpy(block->dout + r * ld, seen_at(&d, r), dim * sizeof(bf16));
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = r * stride; i < r * stride + dim; i += 16) {
            const __mmask16 mask = lanes(r * stride + dim - i);
            sum = _mm512_fmadd_ps(load(out + i, mask), load(dout + i, mask), sum);
        }
        block->delta[r] = _mm512_reduce_add_ps(sum);
        block->logsum[r] = packed->logsum[(token + r) * at->heads + head];
        block->seeds[r] = row_seed(&packed->dropout, (token + r) * at->heads + head);
    }
    block->dropout = dropout_of(packed), block->more = kept_scale(&packed->dropout);
    lay_values(&q, 0, 0, block->count, dim, block->q_panels);
    lay_values(&d, 0, 0, block->count, dim, block->dout_panels);
    memset(block->dq, 0, (block->count + QUERIES - 1) / QUERIES * QUERIES * wide * sizeof(float));
}

/* Shares and gradients of scores of one query for the 16 keys from place on, from its scores and the gradients of its
 * shares; both shares are behind dropout. */
INLINE void gradients_of(const Block *block, int64_t r, __mmask16 visible, int64_t place, const float *score,
                         const float *dshare, __m512 *share, __m512 *dscore) {
    const __m512 scale = _mm512_set1_ps(block->at->scale);
    const __m512 shifted = _mm512_fmsub_ps(_mm512_loadu_ps(score), scale, _mm512_set1_ps(block->logsum[r]));
    const __m512 whole = _mm512_maskz_mov_ps(visible, exp_512(shifted));
    __m512 gradient = _mm512_loadu_ps(dshare);
    *share = whole;
    if (block->dropout) {
        const __mmask16 kept = r < block->count ? kept_of(block->dropout, block->seeds[r], place) : 0;
        const __m512 more = _mm512_set1_ps(block->more);
        *share = _mm512_maskz_mul_ps(kept, whole, more);
        gradient = _mm512_maskz_mul_ps(kept, gradient, more);
    }
    const __m512 rest = _mm512_sub_ps(gradient, _mm512_set1_ps(block->delta[r]));
    *dscore = _mm512_maskz_mul_ps(visible, _mm512_mul_ps(whole, rest), scale);
}

/* The keys of the block at start that query r of a block sees, as bits. */
static uint64_t sees(const Block *block, int64_t r, int64_t start) {
    int64_t first, last;
    if (r >= block->count) return 0;
    visible(block->at, block->span, block->first + r, &first, &last);
    const int64_t from = max64(0, min64(KEYS, first - start)), to = max64(0, min64(KEYS, last - start));
    return (to < 64 ? (1ull << to) - 1 : ~0ull) & ~(from < 64 ? (1ull << from) - 1 : ~0ull);
}

/* Two rows of 16 values as pairs, [16][2]. */
static inline void put_pairs(bf16 *to, __m512 even, __m512 odd) {
    const __m512i left = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
    const __m512i right = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
    _mm512_storeu_si512(to, _mm512_or_si512(left, _mm512_slli_epi32(right, 16)));
}

/* One block of queries and one of keys. key, value: panels by lay_keys; rows: the keys' by lay_values. Adds to the
 * queries' gradients; dk and dv, [KEYS, wide], are set. */
static void back_block(Block *block, int64_t start, int64_t count, const bf16 *key, const bf16 *value, const bf16 *rows,
                       float *dk, float *dv) {
    const int64_t dim = block->at->head_dim, pairs = (dim + 1) / 2, wide = (dim + WIDE - 1) / WIDE * WIDE;
    const int64_t queries = (block->count + QUERIES - 1) / QUERIES * QUERIES;
    float score[QUERIES * KEYS], dshare[QUERIES * KEYS];
    bf16 dscore[QUERIES * KEYS];
    bf16 shares[KEYS * KEYS], dscores[KEYS * KEYS]; /* [query / 2][key][2] */
    for (int64_t m = 0; m < queries; m += QUERIES) {
        for (int64_t j = 0; j < count; j += WIDE) {
            dots(block->q + m * 2 * pairs, 2 * pairs, 2, key + j * 2 * pairs, pairs, 0, score + j, KEYS);
            dots(block->dout + m * 2 * pairs, 2 * pairs, 2, value + j * 2 * pairs, pairs, 0, dshare + j, KEYS);
        }
        for (int64_t r = 0; r < QUERIES; r += 2) {
            const uint64_t left = sees(block, m + r, start), right = sees(block, m + r + 1, start);
            for (int64_t j = 0; j < KEYS; j += 16) {
                __m512 share[2], gradient[2];
                const int64_t at = r * KEYS + j, pair = (m + r) * KEYS + 2 * j;
                const int64_t next = at + KEYS;
                const int64_t place = start + j;
                gradients_of(block, m + r, left >> j, place, score + at, dshare + at, &share[0], &gradient[0]);
                gradients_of(block, m + r + 1, right >> j, place, score + next, dshare + next, &share[1], &gradient[1]);
                put_pairs(shares + pair, share[0], share[1]);
                put_pairs(dscores + pair, gradient[0], gradient[1]);
                store(dscore + at, 0xffff, gradient[0]);
                store(dscore + next, 0xffff, gradient[1]);
            }
        }
        for (int64_t d = 0; d < dim; d += WIDE)
            dots(dscore, KEYS, 2, rows + d * KEYS, (count + 1) / 2, 1, block->dq + m * wide + d, wide);
    }
    for (int64_t j = 0; j < count; j += QUERIES)
        for (int64_t d = 0; d < dim; d += WIDE) {
            const int64_t seen_by_pairs = (block->count + 1) / 2;
            dots(dscores + 2 * j, 2, 2 * KEYS, block->q_panels + d * KEYS, seen_by_pairs, 0, dk + j * wide + d, wide);
            dots(shares + 2 * j, 2, 2 * KEYS, block->dout_panels + d * KEYS, seen_by_pairs, 0, dv + j * wide + d, wide);
        }
}

/* sums[0], sums[1] += dk, dv */
static void add_to(float *sums, const float *dk, const float *dv, int64_t wide) {
    for (int64_t d = 0; d < wide; d += 16) {
        _mm512_storeu_ps(sums + d, _mm512_add_ps(_mm512_loadu_ps(sums + d), _mm512_loadu_ps(dk + d)));
        _mm512_storeu_ps(sums + wide + d, _mm512_add_ps(_mm512_loadu_ps(sums + wide + d), _mm512_loadu_ps(dv + d)));
    }
}

/* A span's queries under one head; what its keys and values get is added to sums, [tokens, 2, wide]. */
static void back_span(const Attention *at, const Packed *packed, const Span *span, int64_t head,
                      const Gradients *gradients, float *sums) {
    const int64_t dim = at->head_dim, wide = (dim + WIDE - 1) / WIDE * WIDE, group = at->heads / at->kv_heads;
    const int64_t kv_head = head / group;
    const int64_t *path = packed->paths + span->row;
    const Seen keys = seen_by(packed, span, (const bf16 *)at->k + kv_head * at->k_head, at->k_token);
    const Seen values = seen_by(packed, span, (const bf16 *)at->v + kv_head * at->v_head, at->v_token);
    bf16 key[KEYS * MAX_HEAD], value[KEYS * MAX_HEAD], rows[KEYS * MAX_HEAD];
    float dk[KEYS * MAX_HEAD], dv[KEYS * MAX_HEAD];
    Block block;
    block.at = at, block.span = span;
    for (block.first = 0; block.first < span->count; block.first += KEYS) {
        int64_t begin, end, ignored;
        block.count = min64(KEYS, span->count - block.first);
        lay_block(&block, packed, gradients, head);
        visible(at, span, block.first, &begin, &ignored);
        visible(at, span, block.first + block.count - 1, &ignored, &end);
        for (int64_t start = begin / KEYS * KEYS; start < end; start += KEYS) {
            const int64_t seen = max64(begin - start, 0), count = min64(KEYS, end - start);
            lay_keys(&keys, start, seen, count, dim, key);
            lay_keys(&values, start, seen, count, dim, value);
            lay_values(&keys, start, seen, count, dim, rows);
            back_block(&block, start, count, key, value, rows, dk, dv);
            for (int64_t j = seen; j < count; j++) {
                const int64_t place = start + j;
                const int64_t token = place < span->context ? path[place] : span->start + place - span->context;
                add_to(sums + token * 2 * wide, dk + j * wide, dv + j * wide, wide);
            }
        }
        for (int64_t r = 0; r < block.count; r++)
            for (int64_t d = 0; d < dim; d += 16)
                store(gradients->dq + ((span->start + block.first + r) * at->heads + head) * dim + d, lanes(dim - d),
                      _mm512_loadu_ps(block.dq + r * wide + d));
    }
}

/* The gradients of one token's key or value: of all query heads that read it. */
static void put_sums(bf16 *to, const float *sums, int64_t dim, int64_t group, int64_t apart) {
    for (int64_t d = 0; d < dim; d += 16) {
        __m512 sum = _mm512_loadu_ps(sums + d);
        for (int64_t h = 1; h < group; h++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(sums + h * apart + d));
        store(to + d, lanes(dim - d), sum);
    }
}

/* Gradients of what tenora_packed_attention_bf16 computed; at->out and packed->logsum are what it left. */
void tenora_packed_attention_back_bf16(const Attention *at, const Packed *packed, const Gradients *gradients) {
    const int64_t dim = at->head_dim, wide = (dim + WIDE - 1) / WIDE * WIDE, tokens = packed->tokens;
    const int64_t group = at->heads / at->kv_heads, apart = tokens * 2 * wide;
#pragma omp parallel num_threads(packed->threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int64_t head = 0; head < at->heads; head++) {
            float *sums = gradients->sums + head * apart;
            memset(sums, 0, apart * sizeof(float));
            for (int64_t i = 0; i < packed->count; i++)
                back_span(at, packed, &packed->spans[i], head, gradients, sums);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tokens * at->kv_heads; i++) {
            const float *sums = gradients->sums + i % at->kv_heads * group * apart + i / at->kv_heads * 2 * wide;
            put_sums(gradients->dk + i * dim, sums, dim, group, apart);
            put_sums(gradients->dv + i * dim, sums + wide, dim, group, apart);
        }
    }
}
