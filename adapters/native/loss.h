/* Cross-entropy of rows of logits in bfloat16, computed in float32. Included by kernels.c. */

/* The logarithm of the sum of the exponentials of a row. */
static float logsum_of(const bf16 *logits, int64_t n) {
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(n - i);
        most = _mm512_mask_max_ps(most, mask, most, load(logits + i, mask));
    }
    const float top = _mm512_reduce_max_ps(most);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(n - i);
        const __m512 e = exp_512(_mm512_sub_ps(load(logits + i, mask), _mm512_set1_ps(top)));
        sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(mask, e));
    }
    return top + logf(_mm512_reduce_add_ps(sum));
}

/* losses[m] = -log p(target) of logits [rows, n]. Where weights is not NULL each row becomes the gradient of its loss
 * times its weight. */
void tenora_cross_entropy_bf16(bf16 *logits, const int64_t *targets, const float *weights, float *losses, int64_t rows,
                               int64_t n, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < rows; m++) {
        bf16 *row = logits + m * n, *own = row + targets[m];
        const float logsum = logsum_of(row, n);
        losses[m] = logsum - _mm512_cvtss_f32(load(own, 1));
        if (!weights) continue;
        for (int64_t i = 0; i < n; i += 16) {
            const __mmask16 mask = lanes(n - i);
            const __m512 share = exp_512(_mm512_sub_ps(load(row + i, mask), _mm512_set1_ps(logsum)));
            store(row + i, mask, _mm512_mul_ps(share, _mm512_set1_ps(weights[m])));
        }
        store(own, 1, _mm512_set1_ps(weights[m] * expm1f(-losses[m])));
    }
}
