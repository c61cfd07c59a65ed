/* What lies between the matrix products: norms, activations, and the way of queries, keys and values. */

#define SMALL 32768 /* elements: below it a second thread costs more than it saves */

INLINE ptrdiff_t threads_for(ptrdiff_t elements, ptrdiff_t num_threads) { return elements < SMALL ? 1 : num_threads; }

INLINE float sum_of_squares(const float *x, ptrdiff_t n) {
    vec a = {}, b = {}, c = {}, d = {};
    ptrdiff_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        vec p = load(x + i), q = load(x + i + LANES), r = load(x + i + 2 * LANES), s = load(x + i + 3 * LANES);
        a = fused(p, p, a), b = fused(q, q, b), c = fused(r, r, c), d = fused(s, s, d);
    }
    for (; i + LANES <= n; i += LANES)
        a += load(x + i) * load(x + i);
    float total = sum((a + b) + (c + d));
    for (; i < n; i++)
        total += x[i] * x[i];
    return total;
}

INLINE void normalise(const float *x, const float *weight, float *out, ptrdiff_t n, float eps) {
    float factor = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES)
        store(out + i, load(x + i) * factor * load(weight + i));
    for (; i < n; i++)
        out[i] = x[i] * factor * weight[i];
}

struct norm {
    float *x;
    const float *delta, *weight;
    float *out;
    ptrdiff_t size;
    float eps;
};

static void norm_line(const void *job, ptrdiff_t line) {
    const struct norm *norm = job;
    ptrdiff_t size = norm->size, i = 0;
    float *x = norm->x + line * size;
    if (norm->delta) {
        const float *delta = norm->delta + line * size;
        for (; i + LANES <= size; i += LANES)
            store(x + i, load(x + i) + load(delta + i));
        for (; i < size; i++)
            x[i] += delta[i];
    }
    normalise(x, norm->weight, norm->out + line * size, size, norm->eps);
}

void penstock_rms_norm(
    float *x, const float *weight, float *out, ptrdiff_t num_lines, ptrdiff_t size, float eps, ptrdiff_t num_threads
) {
    struct norm job = {x, NULL, weight, out, size, eps};
    run(norm_line, &job, num_lines, threads_for(num_lines * size, num_threads));
}

void penstock_add_rms_norm(
    float *hidden, const float *delta, const float *weight, float *out, ptrdiff_t num_lines, ptrdiff_t size, float eps,
    ptrdiff_t num_threads
) {
    struct norm job = {hidden, delta, weight, out, size, eps};
    run(norm_line, &job, num_lines, threads_for(num_lines * size, num_threads));
}

enum activation { SILU, GELU_TANH };

INLINE vec activated(vec x, enum activation which) {
    vec z = which == SILU ? x : x * (1.5957691216057308f + 0.07135481282618138f * x * x); /* 2 sqrt(2 / pi) (...) */
    return x / (1.0f + exponential(-z));
}

struct gate {
    const float *gate_up;
    float *out;
    ptrdiff_t size;
    enum activation which;
};

INLINE void gate_as(const struct gate *job, ptrdiff_t line, enum activation which) {
    ptrdiff_t size = job->size, i = 0;
    const float *gate = job->gate_up + 2 * line * size, *up = gate + size;
    float *out = job->out + line * size;
    for (; i + LANES <= size; i += LANES)
        store(out + i, activated(load(gate + i), which) * load(up + i));
    if (i < size) {
        float padded[LANES] = {};
        memcpy(padded, gate + i, (size_t)(size - i) * 4);
        store(padded, activated(load(padded), which));
        for (ptrdiff_t j = i; j < size; j++)
            out[j] = padded[j - i] * up[j];
    }
}

static void gate_line(const void *job, ptrdiff_t line) {
    const struct gate *gate = job;
    if (gate->which == SILU)
        gate_as(gate, line, SILU);
    else
        gate_as(gate, line, GELU_TANH);
}

void penstock_gated(
    const float *gate_up, float *out, ptrdiff_t num_lines, ptrdiff_t size, ptrdiff_t which, ptrdiff_t num_threads
) {
    struct gate job = {gate_up, out, size, (enum activation)which};
    run(gate_line, &job, num_lines, threads_for(4 * num_lines * size, num_threads));
}

/* KV memory: [block][kv_head][layer][k/v][token][head_dim]. */

struct place {
    float *blocks;
    ptrdiff_t num_kv_heads, num_layers, block_size, head_dim;
};

/* Where the keys of a head begin; its values follow a page later. */
INLINE float *page(const struct place *place, int64_t block, ptrdiff_t head, ptrdiff_t layer) {
    ptrdiff_t number = ((ptrdiff_t)block * place->num_kv_heads + head) * place->num_layers + layer;
    return place->blocks + 2 * number * place->block_size * place->head_dim;
}

struct storing {
    const struct place *place;
    ptrdiff_t layer, num_heads;
    const float *qkv, *cos, *sin, *qk_norm;
    const int64_t *block_ids, *offsets;
    float eps, *queries;
};

/* Pairs (i, i + half) turn by the same angle; sin comes with its sign. */
INLINE void turn(const float *x, const float *cos, const float *sin, float *out, ptrdiff_t size) {
    ptrdiff_t half = size / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        vec low = load(x + i), high = load(x + half + i);
        store(out + i, low * load(cos + i) + high * load(sin + i));
        store(out + half + i, high * load(cos + half + i) + low * load(sin + half + i));
    }
    for (; i < half; i++) {
        float low = x[i], high = x[half + i];
        out[i] = low * cos[i] + high * sin[i];
        out[half + i] = high * cos[half + i] + low * sin[half + i];
    }
}

static void store_line(const void *job, ptrdiff_t line) {
    const struct storing *s = job;
    const struct place *place = s->place;
    ptrdiff_t dim = place->head_dim, kv_heads = place->num_kv_heads, page_size = place->block_size * dim;
    const float *from = s->qkv + line * (s->num_heads + 2 * kv_heads) * dim;
    const float *cos = s->cos + line * dim, *sin = s->sin + line * dim;
    float normed[dim];
    for (ptrdiff_t head = 0; head < s->num_heads + kv_heads; head++) {
        const float *x = from + head * dim;
        if (s->qk_norm) {
            normalise(x, s->qk_norm + head * dim, normed, dim, s->eps);
            x = normed;
        }
        float *to;
        if (head < s->num_heads)
            to = s->queries + (line * s->num_heads + head) * dim;
        else
            to = page(place, s->block_ids[line], head - s->num_heads, s->layer) + s->offsets[line] * dim;
        turn(x, cos, sin, to, dim);
    }
    for (ptrdiff_t head = 0; head < kv_heads; head++) {
        float *to = page(place, s->block_ids[line], head, s->layer) + page_size + s->offsets[line] * dim;
        memcpy(to, from + (s->num_heads + kv_heads + head) * dim, (size_t)dim * 4);
    }
}

void penstock_store(
    const struct place *place, ptrdiff_t layer, const float *qkv, ptrdiff_t num_lines, ptrdiff_t num_heads,
    const int64_t *block_ids, const int64_t *offsets, const float *cos, const float *sin, const float *qk_norm,
    float eps, float *queries, ptrdiff_t num_threads
) {
    struct storing job = {place, layer, num_heads, qkv, cos, sin, qk_norm, block_ids, offsets, eps, queries};
    ptrdiff_t elements = num_lines * (num_heads + 2 * place->num_kv_heads) * place->head_dim;
    run(store_line, &job, num_lines, threads_for(elements, num_threads));
}
