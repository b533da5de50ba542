/* LoRA's two products with many rows under one adapter, in bfloat16. Included by kernels.c. */

#define FEW 8 /* rows at a time: of more, those of a wide layer would push each other out of the first cache */

/* A matrix in float32, by its strides. */
typedef struct {
    const float *values;
    int64_t rows, columns, row, column;
} Matrix;

/* A [rank, k] and B [n, rank] as they are trained, rows of x [total, k] and of what is added to, y [total, n]. k is even.
 * even is rank rounded up to that; narrow, [total, even], takes x A^T, and a and b have room for the panels of both,
 * even * k and even * n values. */
typedef struct {
    Matrix down, up;
    int64_t total;
    float scale;
    const bf16 *x;
    bf16 *narrow, *y, *a, *b;
} Lora;

/* Panel p of a matrix times scale, an odd number of columns padded with zeros. */
static void lay_panel(const Matrix *from, int64_t p, float scale, bf16 *panels) {
    const int64_t pairs = (from->columns + 1) / 2, width = min64(PANEL, from->rows - p * PANEL);
    bf16 *to = panels + p * PANEL * pairs * 2;
    for (int64_t j = 0; j < width; j++) {
        const float *values = from->values + (p * PANEL + j) * from->row;
        for (int64_t i = 0; i < 2 * pairs; i++) {
            const float value = i < from->columns ? scale * values[i * from->column] : 0.0f;
            store(to + (i / 2 * width + j) * 2 + i % 2, 1, _mm512_set1_ps(value));
        }
    }
}

/* y += (x A^T) (scale B)^T, or with first the scale at A. */
void tenora_lora_bf16(const Lora *lora, int64_t first, int64_t threads) {
    const int64_t rank = lora->down.rows, k = lora->down.columns, n = lora->up.rows, even = (rank + 1) / 2 * 2;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < (rank + PANEL - 1) / PANEL; p++)
            lay_panel(&lora->down, p, first ? lora->scale : 1.0f, lora->a);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < (n + PANEL - 1) / PANEL; p++)
            lay_panel(&lora->up, p, first ? 1.0f : lora->scale, lora->b);
#pragma omp for schedule(static)
        for (int64_t start = 0; start < lora->total; start += FEW) {
            const int64_t count = min64(FEW, lora->total - start);
            const bf16 *x = lora->x + start * k;
            bf16 *narrow = lora->narrow + start * even, *y = lora->y + start * n;
            for (int64_t m = 0; m < count; m++) narrow[m * even + even - 1] = 0;
            for (int64_t r = 0; r < rank; r += PANEL)
                tile_bf16(count, x, k, lora->a + r * k, k / 2, min64(PANEL, rank - r), NULL, 0, narrow + r, even);
            int64_t o = 0;
            for (; count == FEW && o + 2 * PANEL <= n; o += 2 * PANEL)
                tile2_8(narrow, even, lora->b + o * even, even / 2, y + o, n, y + o, n);
            for (; o < n; o += PANEL)
                tile_bf16(count, narrow, even, lora->b + o * even, even / 2, min64(PANEL, n - o), y + o, n, y + o, n);
        }
    }
}
