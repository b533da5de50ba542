/* What surrounds the inner loops, for one type. Included by kernels.c with
 *
 *     TYPE           float or bf16
 *     F(NAME)        NAME with the type's suffix
 *     PAIR           values of k that are multiplied at once
 *
 * Functions that begin with "share_" are called by all threads of a parallel region, divide the work among them and
 * leave without waiting for each other unless said.
 */

/* Copy x for a linear layer that reads a copy, in eight bits or with its rows apart; threads take the rows that
 * share_norm gives them. */
static void F(share_copy)(const Linear *linear, const Batch *batch, const TYPE *x) {
#if INT8
    if (linear->scale) {
        const Rounded to = rounded(batch, linear->k);
#pragma omp for schedule(static) nowait
        for (int64_t m = 0; m < batch->total; m++)
            F(round_row)(x + m * linear->k, linear->k, to.q + m * to.ld, to.step + m, to.zero + m);
        return;
    }
#endif
    const int64_t ld = apart(linear, batch);
    TYPE *to = batch->copy;
    if (!ld) return;
#pragma omp for schedule(static) nowait
    for (int64_t m = 0; m < batch->total; m++) memcpy(to + m * ld, x + m * linear->k, linear->k * sizeof(TYPE));
}

/* y = (start or bias) + x W^T; start is [total, n] and may be y itself. Where the layer reads a copy of x it has to have
 * been made. */
static void F(share_linear)(const Linear *linear, const Batch *batch, const TYPE *x, const TYPE *start, TYPE *y) {
#if INT8
    if (linear->scale) {
        F(share_int8)(linear, rounded(batch, linear->k), start, y, batch->total);
        return;
    }
#endif
    const int64_t n = linear->n, k = linear->k, total = batch->total, pairs = (n + 2 * PANEL - 1) / (2 * PANEL);
    const int64_t deep = max64(TILE, (1 << 19) / (k * (int64_t)sizeof(TYPE)) / TILE * TILE); /* rows in the L2 cache */
    const int64_t copied = apart(linear, batch), ldx = copied ? copied : k;
    const TYPE *weight = linear->weight, *bias = linear->bias;
    if (copied) x = batch->copy;
    for (int64_t m = 0; m < total; m += deep) {
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < pairs; p++) {
            const int64_t o = p * 2 * PANEL;
            const TYPE *from = start ? start + m * n + o : bias ? bias + o : NULL;
            F(tiles)(min64(deep, total - m), x + m * ldx, ldx, weight + o * k, k / PAIR, min64(2 * PANEL, n - o), from,
                    start ? n : 0, y + m * n + o, n);
        }
    }
}

/* y += B A x for some rows of x, all under one adapter. */
static void F(lora)(const Linear *linear, const Slot *slot, const Rows *rows, const TYPE *x, TYPE *y) {
    const int64_t count = rows->stop - rows->start, n = linear->n, k = linear->k, rank = slot->rank;
    const int64_t deep = (rank + PAIR - 1) / PAIR, ldh = deep * PAIR;
    const TYPE *a = slot->a, *b = slot->b;
    TYPE hidden[TILE * MAX_RANK];
    x += rows->start * k;
    y += rows->start * n;
    if (ldh > rank)
        for (int64_t m = 0; m < count; m++) hidden[m * ldh + rank] = 0;
    for (int64_t r = 0; r < rank; r += PANEL)
        F(tile)(count, x, k, a + r * k, k / PAIR, min64(PANEL, rank - r), NULL, 0, hidden + r, ldh);
    for (int64_t o = 0; o < n; o += PANEL)
        F(tile)(count, hidden, ldh, b + o * ldh, deep, min64(PANEL, n - o), y + o, n, y + o, n);
}

/* The adapters of up to three modules that read the same x. Waits before and after. */
static void F(share_lora)(const Batch *batch, const Module *const modules[], TYPE *const y[], int64_t count,
                          const TYPE *x) {
#pragma omp barrier
    int64_t targeted = 0;
    for (int64_t i = 0; i < count; i++) targeted += modules[i]->slots != NULL;
    if (!targeted || !batch->rows) return;
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count * batch->rows; i++) {
        const Module *module = modules[i % count];
        const Rows *rows = &batch->row[i / count];
        if (module->slots && module->slots[rows->slot].rank)
            F(lora)(module->linear, &module->slots[rows->slot], rows, x, y[i % count]);
    }
}

/* Keep every span's keys and values in the cache, wait, and attend for every query of every span. */
static void F(share_attention)(const Attention *at, const Span *spans, int64_t count, int64_t threads) {
    const int64_t group = at->heads / at->kv_heads, dim = at->head_dim, size = at->length * dim;
    const int64_t split = count * at->kv_heads < 4 * threads ? group : 1; /* few items: a head each */
    const int64_t each = group / split, heads = at->kv_heads * split;
    const int64_t parts = PAIR == 2 ? most_parts(spans, count, each, dim) : 1;
    const TYPE *q = at->q, *k = at->k, *v = at->v;
    TYPE *out = at->out, *key_cache = at->key_cache, *value_cache = at->value_cache;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * at->kv_heads; i++) {
        const Span *span = &spans[i / at->kv_heads];
        const int64_t head = i % at->kv_heads;
        if (span->row < 0) continue;
        const int64_t place = (span->row * at->kv_heads + head) * size + span->context * dim;
        for (int64_t t = 0; t < span->count; t++) {
            const int64_t token = span->start + t;
            memcpy(key_cache + place + t * dim, k + token * at->k_token + head * at->k_head, dim * sizeof(TYPE));
            memcpy(value_cache + place + t * dim, v + token * at->v_token + head * at->v_head, dim * sizeof(TYPE));
        }
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = 0; i < count * heads * parts; i++) {
        const Span *span = &spans[i / (heads * parts)];
        const int64_t first_head = i / parts % heads * each, kv_head = first_head / group, part = i % parts;
        const TYPE *keys = k + span->start * at->k_token + kv_head * at->k_head;
        const TYPE *values = v + span->start * at->v_token + kv_head * at->v_head;
        int64_t key_stride = at->k_token, value_stride = at->v_token, first, last;
        if (span->row >= 0) {
            keys = key_cache + (span->row * at->kv_heads + kv_head) * size;
            values = value_cache + (span->row * at->kv_heads + kv_head) * size;
            key_stride = value_stride = dim;
        }
#if PAIR == 2
        if (span->count > 1 && span->count * group >= QUERIES) {
            const Queries queries = {at, span, first_head, each, NULL, NULL};
            const Seen seen = {NULL, NULL, 0, keys, key_stride}, read = {NULL, NULL, 0, values, value_stride};
            const int64_t most = together(dim), row = part * most, n = min64(most, span->count * each - row);
            if (n > 0) attend_rows_bf16(&queries, row, n, &seen, &read);
            continue;
        }
#endif
        if (part) continue;
        for (int64_t t = 0; t < span->count; t++) {
            const int64_t token = span->start + t;
            visible(at, span, t, &first, &last);
            for (int64_t head = first_head; head < first_head + each; head++)
                F(attend)(q + token * at->q_token + head * at->q_head, keys, key_stride, values, value_stride, first,
                          last, dim, at->scale, out + (token * at->heads + head) * dim);
        }
    }
}

/* Per-head norms where the layer has them, then the rotation by position, in place. Waits after. */
static void F(share_rotate)(const Layer *layer, const Batch *batch, TYPE *q, TYPE *k) {
    const int64_t heads = layer->attention.heads, kv_heads = layer->attention.kv_heads, dim = layer->attention.head_dim;
    const TYPE *cosine = batch->cos, *sine = batch->sin;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < batch->total; t++) {
        for (int64_t h = 0; h < heads + kv_heads; h++) {
            TYPE *at = h < heads ? q + (t * heads + h) * dim : k + (t * kv_heads + h - heads) * dim;
            const TYPE *norm = h < heads ? layer->q_norm : layer->k_norm;
            if (norm) F(norm)(at, norm, at, dim, h < heads ? layer->q_eps : layer->k_eps);
            F(rotate)(at, cosine + t * dim, sine + t * dim, dim / 2);
        }
    }
}

static void F(share_norm)(const TYPE *x, const TYPE *weight, TYPE *y, int64_t rows, int64_t n, float eps) {
#pragma omp for schedule(static) nowait
    for (int64_t m = 0; m < rows; m++) F(norm)(x + m * n, weight, y + m * n, n, eps);
}

static void F(share_layer)(const Layer *layer, const Batch *batch, TYPE *x, TYPE *scratch) {
    const int64_t total = batch->total, hidden = layer->q->linear->k, inner = layer->gate->linear->n;
    TYPE *normed = scratch, *q = normed + total * hidden, *k = q + total * layer->q->linear->n;
    TYPE *v = k + total * layer->k->linear->n, *attended = v + total * layer->v->linear->n;
    TYPE *gate = q, *up = gate + total * inner; /* attention is over by then */
    Attention attention = layer->attention;
    const int64_t dim = attention.head_dim;
    attention.q = q, attention.k = k, attention.v = v, attention.out = attended;
    attention.q_token = attention.heads * dim;
    attention.k_token = attention.v_token = attention.kv_heads * dim;
    attention.q_head = attention.k_head = attention.v_head = dim;

    F(share_norm)(x, layer->input_norm, normed, total, hidden, layer->input_eps);
    F(share_copy)(layer->q->linear, batch, normed);
#pragma omp barrier
    F(share_linear)(layer->q->linear, batch, normed, NULL, q);
    F(share_linear)(layer->k->linear, batch, normed, NULL, k);
    F(share_linear)(layer->v->linear, batch, normed, NULL, v);
    F(share_lora)(batch, (const Module *[]){layer->q, layer->k, layer->v}, (TYPE *[]){q, k, v}, 3, normed);
    F(share_rotate)(layer, batch, q, k);
    F(share_attention)(&attention, batch->span, batch->spans, batch->threads);
#pragma omp barrier
    if (copies(layer->o->linear, batch)) {
        F(share_copy)(layer->o->linear, batch, attended);
#pragma omp barrier
    }
    F(share_linear)(layer->o->linear, batch, attended, x, x);
    F(share_lora)(batch, (const Module *[]){layer->o}, (TYPE *[]){x}, 1, attended);

    F(share_norm)(x, layer->post_norm, normed, total, hidden, layer->post_eps);
    F(share_copy)(layer->gate->linear, batch, normed);
#pragma omp barrier
    F(share_linear)(layer->gate->linear, batch, normed, NULL, gate);
    F(share_linear)(layer->up->linear, batch, normed, NULL, up);
    F(share_lora)(batch, (const Module *[]){layer->gate, layer->up}, (TYPE *[]){gate, up}, 2, normed);
#pragma omp for schedule(static) nowait
    for (int64_t m = 0; m < total; m++) F(gate)(gate + m * inner, up + m * inner, inner);
    F(share_copy)(layer->down->linear, batch, gate);
#pragma omp barrier
    F(share_linear)(layer->down->linear, batch, gate, x, x);
    F(share_lora)(batch, (const Module *[]){layer->down}, (TYPE *[]){x}, 1, gate);
}

/* ── what Python calls ───────────────────────────────────────────────────────────────────────────────────────── */

/* One linear layer with its adapters: [total, k] -> [total, n]. */
void F(tenora_linear)(const Module *module, const Batch *batch, const TYPE *x, TYPE *y) {
#pragma omp parallel num_threads(batch->threads)
    {
        if (copies(module->linear, batch)) {
            F(share_copy)(module->linear, batch, x);
#pragma omp barrier
        }
        F(share_linear)(module->linear, batch, x, NULL, y);
        F(share_lora)(batch, &module, &y, 1, x);
    }
}

/* All decoder layers on x [total, hidden], in place.
 * scratch: total * (hidden + max(q.n + k.n + v.n + q.n, 2 * gate.n)) values. */
void F(tenora_layers)(const Layer *layers, int64_t count, const Batch *batch, TYPE *x, TYPE *scratch) {
#pragma omp parallel num_threads(batch->threads)
    for (int64_t i = 0; i < count; i++) F(share_layer)(&layers[i], batch, x, scratch);
}

void F(tenora_attention)(const Attention *at, const Span *spans, int64_t count, int64_t threads) {
#pragma omp parallel num_threads(threads)
    F(share_attention)(at, spans, count, threads);
}

void F(tenora_rms_norm)(const TYPE *x, const TYPE *weight, TYPE *y, int64_t rows, int64_t n, float eps,
                        int64_t threads) {
#pragma omp parallel num_threads(threads) if (rows > 4)
    F(share_norm)(x, weight, y, rows, n, eps);
}
