/* Dropout by counting: whether a place is kept follows from the seed and the place alone, so the backward pass asks
 * again, and threads do not matter. Included by kernels.c. */

/* Of the hash values of 32 bits those below dropped are dropped, and the others scaled so that the mean stays; 0: none
 * are. */
typedef struct {
    uint64_t seed;
    uint32_t dropped;
} Dropout;

static inline float kept_scale(const Dropout *dropout) {
    return dropout->dropped ? (float)(1.0 / (1.0 - dropout->dropped * 0x1p-32)) : 1.0f;
}

/* The seed of one row of places: splitmix64. */
static inline uint64_t row_seed(const Dropout *dropout, uint64_t row) {
    uint64_t z = dropout->seed + (row + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Which of the 16 places from here on are kept: murmur3's finaliser over place and seed. */
INLINE __mmask16 kept_of(const Dropout *dropout, uint64_t row, int64_t place) {
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i h = _mm512_add_epi32(count, _mm512_set1_epi32((int32_t)place));
    if (!dropout->dropped) return 0xffff;
    h = _mm512_mullo_epi32(h, _mm512_set1_epi32((int32_t)0x9e3779b1u));
    h = _mm512_xor_si512(h, _mm512_set1_epi32((int32_t)(uint32_t)row));
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
    h = _mm512_mullo_epi32(h, _mm512_set1_epi32((int32_t)0x85ebca6bu));
    h = _mm512_add_epi32(h, _mm512_set1_epi32((int32_t)(uint32_t)(row >> 32)));
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 13));
    h = _mm512_mullo_epi32(h, _mm512_set1_epi32((int32_t)0xc2b2ae35u));
    h = _mm512_xor_si512(h, _mm512_srli_epi32(h, 16));
    return _mm512_cmpge_epu32_mask(h, _mm512_set1_epi32((int32_t)dropout->dropped));
}

/* y = dropout(x) for n values, in place if y is x. DROP for a type with LOAD(address, lanes) and STORE(address, lanes,
 * values). */
#define CHUNK 65536
#define DROP(TYPE, NAME, LOAD, STORE)                                                                                 \
    void NAME(const TYPE *x, TYPE *y, int64_t n, const Dropout *dropout, int64_t threads) {                           \
        const __m512 more = _mm512_set1_ps(kept_scale(dropout));                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (n > CHUNK)")                              \
        for (int64_t start = 0; start < n; start += CHUNK) {                                                          \
            const uint64_t seed = row_seed(dropout, start / CHUNK);                                                   \
            for (int64_t i = start; i < min64(n, start + CHUNK); i += 16) {                                           \
                const __mmask16 mask = lanes(n - i);                                                                  \
                const __mmask16 kept = kept_of(dropout, seed, i - start);                                             \
                STORE(y + i, mask, _mm512_maskz_mul_ps(kept, LOAD(x + i, mask), more));                               \
            }                                                                                                         \
        }                                                                                                             \
    }
#define LOAD_F32(P, MASK) _mm512_maskz_loadu_ps(MASK, P)
#define STORE_F32(P, MASK, X) _mm512_mask_storeu_ps(P, MASK, X)
DROP(float, tenora_drop_f32, LOAD_F32, STORE_F32)
DROP(bf16, tenora_drop_bf16, load, store)
#undef LOAD_F32
#undef STORE_F32
#undef DROP
