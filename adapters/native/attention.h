/* Attention in bfloat16 as products of matrices: several queries at once with a block of keys that has been laid out
 * for it. Included by kernels.c.
 */

/* y[m] = (y[m] or 0) + x[m] panel^T for QUERIES rows, in float32. x: pairs of values, ldx from row to row and step from
 * pair to pair; panel: [pairs][WIDE][2]. */
INLINE void dots(const bf16 *x, int64_t ldx, const int64_t step, const bf16 *panel, int64_t pairs, int more, float *y,
                 int64_t ldy) {
    __m512 left[QUERIES], right[QUERIES];
    _Pragma("GCC unroll 8") for (int m = 0; m < QUERIES; m++) {
        left[m] = more ? _mm512_loadu_ps(y + m * ldy) : _mm512_setzero_ps();
        right[m] = more ? _mm512_loadu_ps(y + m * ldy + 16) : _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < pairs; i++) {
        const __m512bh a = (__m512bh)_mm512_loadu_si512(panel + i * 2 * WIDE);
        const __m512bh b = (__m512bh)_mm512_loadu_si512(panel + i * 2 * WIDE + 32);
        _Pragma("GCC unroll 8") for (int m = 0; m < QUERIES; m++) {
            const __m512bh v = pair(x + m * ldx + step * i);
            left[m] = _mm512_dpbf16_ps(left[m], a, v);
            right[m] = _mm512_dpbf16_ps(right[m], b, v);
        }
    }
    _Pragma("GCC unroll 8") for (int m = 0; m < QUERIES; m++) {
        _mm512_storeu_ps(y + m * ldy, left[m]);
        _mm512_storeu_ps(y + m * ldy + 16, right[m]);
    }
}

/* What the queries of a span attend to, the keys or the values of one head: some of the batch by their tokens, and then
 * those that lie one after the other. */
typedef struct {
    const bf16 *batch; /* token 0 */
    const int64_t *path;
    int64_t before;
    const bf16 *own;
    int64_t stride; /* from token to token */
} Seen;

static inline const bf16 *seen_at(const Seen *seen, int64_t j) {
    if (j < seen->before) return seen->batch + seen->path[j] * seen->stride;
    return seen->own + (j - seen->before) * seen->stride;
}

/* Keys first:last of the block that begins at start as panels [KEYS / WIDE][ceil(dim / 2)][WIDE][2]; zero up to whole
 * panels. */
static void lay_keys(const Seen *keys, int64_t start, int64_t first, int64_t last, int64_t dim, bf16 *panels) {
    const int64_t pairs = (dim + 1) / 2;
    for (int64_t j = 0; j < (last + WIDE - 1) / WIDE * WIDE; j++) {
        unit *to = (unit *)(panels + j / WIDE * pairs * 2 * WIDE) + j % WIDE;
        const int there = first <= j && j < last;
        const bf16 *key = there ? seen_at(keys, start + j) : NULL;
        for (int64_t i = 0; i < dim / 2; i++) to[i * WIDE] = there ? ((const unit *)key)[i] : 0;
        if (dim % 2) to[dim / 2 * WIDE] = there ? key[dim - 1] : 0;
    }
}

/* Values first:last of the block that begins at start as panels [ceil(dim / WIDE)][KEYS / 2][WIDE][2]; zero up to whole
 * pairs. */
static void lay_values(const Seen *values, int64_t start, int64_t first, int64_t last, int64_t dim, bf16 *panels) {
    static const int16_t order[64] = {
        0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
        11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
        22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63,
    };
    const __m512i low = _mm512_loadu_si512(order), high = _mm512_loadu_si512(order + 32);
    for (int64_t j = 0; j < last; j += 2) {
        const bf16 *left = first <= j ? seen_at(values, start + j) : NULL;
        const bf16 *right = first <= j + 1 && j + 1 < last ? seen_at(values, start + j + 1) : NULL;
        bf16 *to = panels + j * WIDE;
        for (int64_t d = 0; d < dim; d += WIDE, to += KEYS * WIDE) {
            const __mmask32 mask = dim - d >= 32 ? 0xffffffffu : (1u << (dim - d)) - 1;
            const __m512i a = left ? _mm512_maskz_loadu_epi16(mask, left + d) : _mm512_setzero_si512();
            const __m512i b = right ? _mm512_maskz_loadu_epi16(mask, right + d) : _mm512_setzero_si512();
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
            _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

/* A row's scores of a block of keys become its shares, in bf16; of its unfinished output, *top and *sum are the
 * largest score and what the shares add up to. Keys [first, last) of the block are visible, those of kept count. */
static inline void share_out(float *score, int64_t first, int64_t last, float scale, const __mmask16 *kept, float *top,
                             float *sum, bf16 *share, float *out, int64_t wide) {
    __m512 most = _mm512_set1_ps(*top), total = _mm512_setzero_ps();
    __mmask16 seen[KEYS / 16];
    for (int64_t j = 0; j < KEYS / 16; j++) {
        const int64_t from = max64(0, min64(16, first - 16 * j)), to = max64(0, min64(16, last - 16 * j));
        seen[j] = (__mmask16)((1u << to) - (1u << from));
        const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(score + 16 * j), _mm512_set1_ps(scale));
        _mm512_storeu_ps(score + 16 * j, v);
        most = _mm512_mask_max_ps(most, seen[j], most, v);
    }
    const float block = _mm512_reduce_max_ps(most);
    for (int64_t j = 0; j < KEYS / 16; j++) {
        const __m512 v = _mm512_sub_ps(_mm512_loadu_ps(score + 16 * j), _mm512_set1_ps(block));
        const __m512 e = _mm512_maskz_mov_ps(seen[j], exp_512(v));
        total = _mm512_add_ps(total, e);
        const __m512 counts = kept ? _mm512_maskz_mov_ps(kept[j], e) : e;
        _mm256_storeu_si256((__m256i *)(share + 16 * j), (__m256i)_mm512_cvtneps_pbh(counts));
    }
    if (block > *top) {
        const float shrink = expf(*top - block);
        *sum *= shrink;
        for (int64_t d = 0; d < wide; d += 16)
            _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), _mm512_set1_ps(shrink)));
        *top = block;
    }
    *sum += _mm512_reduce_add_ps(total);
}

/* The queries of a span under the heads that share a key: row r is query r / each of head first_head + r % each. */
typedef struct {
    const Attention *at;
    const Span *span;
    int64_t first_head, each;
    float *logsum;          /* [token, head] or NULL */
    const Dropout *dropout; /* of the shares; or NULL */
} Queries;

static void visible_to(const Queries *queries, int64_t row, int64_t *first, int64_t *last) {
    visible(queries->at, queries->span, row / queries->each, first, last);
}

/* Rows of queries end to end, each padded to whole pairs. */
static void lay_queries(const Queries *queries, int64_t row, int64_t count, bf16 *to) {
    const Attention *at = queries->at;
    const int64_t dim = at->head_dim, ld = (dim + 1) / 2 * 2;
    for (int64_t r = row; r < row + count; r++, to += ld) {
        const int64_t token = queries->span->start + r / queries->each, head = queries->first_head + r % queries->each;
        to[ld - 1] = 0;
        memcpy(to, (const bf16 *)at->q + token * at->q_token + head * at->q_head, dim * sizeof(bf16));
    }
}

/* Outputs divided by what their shares add up to; of what was added up the logarithm, where it is wanted. */
static void put_out(const Queries *queries, int64_t row, int64_t count, const float *out, int64_t wide,
                    const float *top, const float *sum) {
    const Attention *at = queries->at;
    const int64_t dim = at->head_dim;
    for (int64_t m = 0; m < count; m++) {
        const int64_t r = row + m, token = queries->span->start + r / queries->each;
        const int64_t place = token * at->heads + queries->first_head + r % queries->each;
        bf16 *to = (bf16 *)at->out + place * dim;
        const __m512 scale = _mm512_set1_ps((queries->dropout ? kept_scale(queries->dropout) : 1.0f) / sum[m]);
        for (int64_t d = 0; d < dim; d += 16)
            store(to + d, lanes(dim - d), _mm512_mul_ps(_mm512_loadu_ps(out + m * wide + d), scale));
        if (queries->logsum) queries->logsum[place] = top[m] + logf(sum[m]);
    }
}

/* Which keys of the block at start a row keeps. */
static void keys_kept(const Queries *queries, int64_t row, int64_t start, __mmask16 *kept) {
    const int64_t token = queries->span->start + row / queries->each, head = queries->first_head + row % queries->each;
    const uint64_t seed = row_seed(queries->dropout, token * queries->at->heads + head);
    for (int64_t j = 0; j < KEYS / 16; j++) kept[j] = kept_of(queries->dropout, seed, start + 16 * j);
}

/* A few rows attend to the block of keys that begins at start; key and value are its panels. */
static void attend_block(const Queries *queries, int64_t row, int64_t rows, int64_t start, int64_t count,
                         const bf16 *key, const bf16 *value, float *out, int64_t wide, float *top, float *sum) {
    const int64_t dim = queries->at->head_dim, pairs = (dim + 1) / 2;
    bf16 query[QUERIES * MAX_HEAD], share[QUERIES * KEYS] = {0};
    float score[QUERIES * KEYS];
    lay_queries(queries, row, rows, query);
    for (int64_t j = 0; j < count; j += WIDE) dots(query, 2 * pairs, 2, key + j * 2 * pairs, pairs, 0, score + j, KEYS);
    for (int64_t r = 0; r < rows; r++) {
        int64_t first, last;
        __mmask16 kept[KEYS / 16];
        visible_to(queries, row + r, &first, &last);
        first = max64(first - start, 0), last = min64(last - start, count);
        if (first >= last) continue;
        if (queries->dropout) keys_kept(queries, row + r, start, kept);
        share_out(score + r * KEYS, first, last, queries->at->scale, queries->dropout ? kept : NULL, top + r, sum + r,
                  share + r * KEYS, out + r * wide, wide);
    }
    for (int64_t d = 0; d < dim; d += WIDE)
        dots(share, KEYS, 2, value + d * KEYS, (count + 1) / 2, 1, out + d, wide);
}

/* Rows row:row+n of a span's queries, at most as many as attend together: products of matrices where attend_bf16 has
 * dot products. What a query may not see is multiplied by zero, so what is not finite among it shows in queries before
 * it, of its own span. */
static void attend_rows_bf16(const Queries *queries, int64_t row, int64_t n, const Seen *keys, const Seen *values) {
    const int64_t dim = queries->at->head_dim, wide = (dim + WIDE - 1) / WIDE * WIDE;
    bf16 key[KEYS * MAX_HEAD], value[KEYS * MAX_HEAD];
    float out[STATE], top[STATE / WIDE], sum[STATE / WIDE];
    int64_t begin, end, first, last;
    visible_to(queries, row, &begin, &last);
    visible_to(queries, row + n - 1, &first, &end);
    memset(out, 0, (n + QUERIES - 1) / QUERIES * QUERIES * wide * sizeof(float));
    for (int64_t m = 0; m < n; m++) top[m] = -INFINITY, sum[m] = 0;
    /* Blocks begin at multiples, so that what a query gets does not depend on the other queries here. */
    for (int64_t start = begin / KEYS * KEYS; start < end; start += KEYS) {
        const int64_t seen = max64(begin - start, 0), count = min64(KEYS, end - start);
        lay_keys(keys, start, seen, count, dim, key);
        lay_values(values, start, seen, count, dim, value);
        for (int64_t m = 0; m < n; m += QUERIES) {
            const int64_t here = min64(QUERIES, n - m);
            visible_to(queries, row + m, &first, &last);
            if (first >= start + count) continue;
            visible_to(queries, row + m + here - 1, &first, &last);
            if (last <= start) continue;
            attend_block(queries, row + m, here, start, count, key, value, out + m * wide, wide, top + m, sum + m);
        }
    }
    put_out(queries, row, n, out, wide, top, sum);
}
