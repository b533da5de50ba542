/* GELU and its gradient in bfloat16, computed in float32. Included by kernels.c. */

#define GELU_CHUNK 4096 /* values that a thread takes at once */

/* a / b, off by a few units of the last place. */
static inline __m512 divided(__m512 a, __m512 b) {
    const __m512 near = _mm512_rcp14_ps(b);
    return _mm512_mul_ps(a, _mm512_mul_ps(near, _mm512_fnmadd_ps(b, near, _mm512_set1_ps(2.0f))));
}

/* 2^t for t <= 0, relative error below 3e-6: the rounding to bfloat16 is a thousand times that. */
static inline __m512 pow2_512(__m512 t) {
    t = _mm512_max_ps(_mm512_set1_ps(-150.0f), t); /* in this order a NaN stays one */
    const __m512 n = _mm512_roundscale_ps(t, 0), r = _mm512_sub_ps(t, n);
    __m512 p = _mm512_set1_ps(9.570101276e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.591785908e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402474433e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931217909e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999992847e-1f));
    return _mm512_scalef_ps(p, n);
}

/* What x is multiplied with, and the derivative of the product. tanh: sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3);
 * else the normal distribution, by 7.1.26 of Abramowitz and Stegun, off by 1e-7 at most (and by 3e-6 of
 * itself). */
INLINE __m512 gelu_512(__m512 x, const int tanh, __m512 *slope) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps(), log2e = _mm512_set1_ps(1.4426950409f);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ);
    if (tanh) {
        /* beyond 1e4 it is x or 0; the cube of all there is would be infinite */
        const __m512 size = _mm512_min_ps(_mm512_set1_ps(1e4f), _mm512_abs_ps(x)), square = _mm512_mul_ps(size, size);
        const __m512 c = _mm512_set1_ps(2.0f * 0.7978845608f);
        const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), square, one);
        const __m512 twice = _mm512_mul_ps(_mm512_mul_ps(c, size), inner);
        /* sigmoid(|2u|) by e^-|2u| <= 1, then mirrored for negative x */
        const __m512 e = pow2_512(_mm512_fnmadd_ps(twice, log2e, zero));
        const __m512 share = divided(_mm512_mask_blend_ps(negative, one, e), _mm512_add_ps(one, e));
        const __m512 du = _mm512_mul_ps(c, _mm512_fmadd_ps(_mm512_set1_ps(3.0f * 0.044715f), square, one));
        const __m512 bend = _mm512_mul_ps(_mm512_mul_ps(share, _mm512_sub_ps(one, share)), du);
        *slope = _mm512_fmadd_ps(x, bend, share);
        return share;
    }
    /* all there is beyond 28 is 0; in this order a NaN stays one */
    const __m512 size = _mm512_min_ps(_mm512_set1_ps(28.0f), _mm512_abs_ps(x));
    const __m512 t = divided(one, _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f * 0.7071067812f), size, one));
    const __m512 e = pow2_512(_mm512_mul_ps(_mm512_mul_ps(size, size), _mm512_set1_ps(-0.5f * 1.4426950409f)));
    __m512 p = _mm512_set1_ps(0.5f * 1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * -1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * 1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * -0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * 0.254829592f));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), e);
    const __m512 share = _mm512_mask_blend_ps(negative, _mm512_sub_ps(one, tail), tail);
    *slope = _mm512_fmadd_ps(x, _mm512_mul_ps(e, _mm512_set1_ps(0.3989422804f)), share);
    return share;
}

INLINE void gelu_chunk(const bf16 *x, const bf16 *dy, bf16 *y, int64_t n, const int tanh) {
#pragma GCC unroll 2
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = lanes(n - i);
        const __m512 v = load(x + i, mask);
        __m512 slope;
        const __m512 share = gelu_512(v, tanh, &slope);
        store(y + i, mask, dy ? _mm512_mul_ps(load(dy + i, mask), slope) : _mm512_mul_ps(v, share));
    }
}

/* y = gelu(x), or, where dy is not NULL, the gradient of x; y may be dy itself. */
void tenora_gelu_bf16(const bf16 *x, const bf16 *dy, bf16 *y, int64_t n, int64_t tanh, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n > GELU_CHUNK)
    for (int64_t start = 0; start < n; start += GELU_CHUNK) {
        const int64_t count = min64(GELU_CHUNK, n - start);
        const bf16 *from = dy ? dy + start : NULL;
        if (tanh)
            gelu_chunk(x + start, from, y + start, count, 1);
        else
            gelu_chunk(x + start, from, y + start, count, 0);
    }
}
