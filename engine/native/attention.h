/* Attention of single lines.
 * A piece is one line and one KV head, with all query heads on it: each byte of KV is read from memory once. Tokens
 * are taken in tiles: scores of all heads, then the softmax so far, then values. While keys are read the tile's values
 * are fetched ahead, and while values are read the next tile's keys. */

#define TILE 64
#define STEP 8 /* tokens that are scored at once, at most */

struct attention {
    const struct place *place;
    ptrdiff_t layer, num_heads, width, window;
    const float *queries;
    const int64_t *rows, *positions, *tables;
    float scale, *out;
};

struct tokens { /* of one tile; the addresses are filled up to a multiple of STEP with the last one */
    const float *keys[TILE], *values[TILE];
    ptrdiff_t num;
};

/* Products of `heads` queries with `tokens` keys, at once so that what is loaded is used several times. */
INLINE void dot(
    const float *q, const float *const *k, float *scores, ptrdiff_t dim, const int heads, const int tokens
) {
    vec sums[8];
    ptrdiff_t d = 0;
    UNROLLED for (int i = 0; i < heads * tokens; i++) sums[i] = (vec){};
    for (; d + LANES <= dim; d += LANES) {
        vec queries[2];
        UNROLLED for (int h = 0; h < heads; h++) {
            queries[h] = load(q + h * dim + d);
            HOLD(queries[h]);
        }
        UNROLLED for (int t = 0; t < tokens; t++) {
            vec key = load(k[t] + d);
            HOLD(key);
            UNROLLED for (int h = 0; h < heads; h++)
                sums[h * tokens + t] = fused(key, queries[h], sums[h * tokens + t]);
        }
    }
    UNROLLED for (int h = 0; h < heads; h++) {
        UNROLLED for (int t = 0; t < tokens; t += 4) {
            vec *four = sums + h * tokens + t;
            *(vec4_u *)(scores + h * TILE + t) = sum4(four[0], four[1], four[2], four[3]);
        }
    }
    for (; d < dim; d++)
        for (int h = 0; h < heads; h++)
            for (int t = 0; t < tokens; t++)
                scores[h * TILE + t] += q[h * dim + d] * k[t][d];
}

INLINE void score_as(
    const float *q, const struct tokens *tile, float *scores, ptrdiff_t dim, int is_fetching, const int heads,
    const int tokens
) {
    for (ptrdiff_t t = 0; t < tile->num; t += tokens) {
        for (int i = 0; is_fetching && i < tokens; i++)
            for (ptrdiff_t d = 0; d < dim; d += 16)
                __builtin_prefetch(tile->values[t + i] + d);
        dot(q, tile->keys + t, scores + t, dim, heads, tokens);
    }
}

static void score(const float *q, const struct tokens *tile, float *scores, ptrdiff_t dim, ptrdiff_t num_heads) {
    ptrdiff_t h = 0;
    for (; h + 2 <= num_heads; h += 2)
        score_as(q + h * dim, tile, scores + h * TILE, dim, h == 0, 2, 4);
    if (h < num_heads)
        score_as(q + h * dim, tile, scores + h * TILE, dim, h == 0, 1, STEP);
}

/* out = out * corrections + weights x values, for `heads` heads and `wide` vectors of the head size from d on. */
INLINE void mix_part(
    const float *weights, const float *corrections, const struct tokens *tile, const float *const *ahead, float *out,
    ptrdiff_t dim, ptrdiff_t d, const int heads, const int wide
) {
    vec sums[8];
    UNROLLED for (int h = 0; h < heads; h++) {
        UNROLLED for (int w = 0; w < wide; w++)
            sums[h * wide + w] = load(out + h * dim + d + w * LANES) * corrections[h];
    }
    for (ptrdiff_t t = 0; t < tile->num; t++) {
        vec values[8];
        UNROLLED for (int w = 0; w < wide; w++) {
            values[w] = load(tile->values[t] + d + w * LANES);
            HOLD(values[w]);
        }
        if (ahead) {
            UNROLLED for (int w = 0; w < wide; w += 16 / LANES) __builtin_prefetch(ahead[t] + d + w * LANES);
        }
        UNROLLED for (int h = 0; h < heads; h++) {
            vec weight = spread(weights[h * TILE + t]);
            UNROLLED for (int w = 0; w < wide; w++)
                sums[h * wide + w] = fused(weight, values[w], sums[h * wide + w]);
        }
    }
    UNROLLED for (int h = 0; h < heads; h++) {
        UNROLLED for (int w = 0; w < wide; w++) store(out + h * dim + d + w * LANES, sums[h * wide + w]);
    }
}

INLINE void mix_as(
    const float *weights, const float *corrections, const struct tokens *tile, const float *const *ahead, float *out,
    ptrdiff_t dim, const int heads, const int wide
) {
    ptrdiff_t d = 0;
    for (; d + wide * LANES <= dim; d += wide * LANES)
        mix_part(weights, corrections, tile, ahead, out, dim, d, heads, wide);
    for (; d + LANES <= dim; d += LANES)
        mix_part(weights, corrections, tile, ahead, out, dim, d, heads, 1);
    for (; d < dim; d++)
        for (int h = 0; h < heads; h++) {
            float total = out[h * dim + d] * corrections[h];
            for (ptrdiff_t t = 0; t < tile->num; t++)
                total += weights[h * TILE + t] * tile->values[t][d];
            out[h * dim + d] = total;
        }
}

static void mix(
    const float *weights, const float *corrections, const struct tokens *tile, const float *const *ahead, float *out,
    ptrdiff_t dim, ptrdiff_t num_heads
) {
    ptrdiff_t h = 0;
    for (; h + 4 <= num_heads; h += 4, ahead = NULL)
        mix_as(weights + h * TILE, corrections + h, tile, ahead, out + h * dim, dim, 4, 2);
    for (; h + 2 <= num_heads; h += 2, ahead = NULL)
        mix_as(weights + h * TILE, corrections + h, tile, ahead, out + h * dim, dim, 2, 4);
    if (h < num_heads)
        mix_as(weights + h * TILE, corrections + h, tile, ahead, out + h * dim, dim, 1, 8);
}

/* Scores become weights relative to the largest score so far. Returns what earlier sums are to be multiplied by. */
INLINE float soften(float *scores, ptrdiff_t num, float *largest, float *total) {
    ptrdiff_t padded = (num + LANES - 1) / LANES * LANES;
    for (ptrdiff_t t = num; t < padded; t++)
        scores[t] = -INFINITY;
    vec most = load(scores), sums = {};
    for (ptrdiff_t t = LANES; t < padded; t += LANES) {
        vec each = load(scores + t);
        most = pick(each > most, each, most);
    }
    float highest = *largest;
    for (int i = 0; i < LANES; i++)
        highest = MAX(most[i], highest);
    for (ptrdiff_t t = 0; t < padded; t += LANES) {
        vec weights = exponential(load(scores + t) - highest);
        sums += weights;
        store(scores + t, weights);
    }
    float correction = expf(*largest - highest);
    *total = *total * correction + sum(sums);
    *largest = highest;
    return correction;
}

/* The tokens from `start` to `end`, or the first TILE of them. */
static void find(
    const struct attention *a, const int64_t *table, ptrdiff_t head, ptrdiff_t start, ptrdiff_t end, struct tokens *tile
) {
    ptrdiff_t size = a->place->block_size, dim = a->place->head_dim, num = MIN(TILE, end - start), t = 0;
    ptrdiff_t block = start / size, offset = start % size;
    for (; t < num; block++, offset = 0) {
        const float *key = page(a->place, table[block], head, a->layer) + offset * dim;
        for (; t < num && offset < size; t++, offset++, key += dim)
            tile->keys[t] = key, tile->values[t] = key + size * dim;
    }
    for (; t < (num + STEP - 1) / STEP * STEP; t++)
        tile->keys[t] = tile->keys[num - 1], tile->values[t] = tile->values[num - 1];
    tile->num = num;
}

static void attend(const void *job, ptrdiff_t piece) {
    const struct attention *a = job;
    ptrdiff_t kv_heads = a->place->num_kv_heads, dim = a->place->head_dim, heads = a->num_heads / kv_heads;
    ptrdiff_t line = piece / kv_heads, head = piece % kv_heads, first = (line * a->num_heads + head * heads) * dim;
    ptrdiff_t end = a->positions[line] + 1, start = a->window ? MAX(0, end - a->window) : 0;
    const int64_t *table = a->tables + a->rows[line] * a->width;
    float q[heads * dim], scores[heads * TILE], largest[heads], totals[heads], corrections[heads];
    float *out = a->out + first;
    struct tokens tiles[2], *tile = tiles, *next = tiles + 1, *swapped;
    for (ptrdiff_t i = 0; i < heads * dim; i++)
        q[i] = a->queries[first + i] * a->scale, out[i] = 0;
    for (ptrdiff_t h = 0; h < heads; h++)
        largest[h] = -INFINITY, totals[h] = 0;
    find(a, table, head, start, end, tile);
    while (start < end) {
        start += tile->num;
        find(a, table, head, start, end, next);
        score(q, tile, scores, dim, heads);
        for (ptrdiff_t h = 0; h < heads; h++)
            corrections[h] = soften(scores + h * TILE, tile->num, largest + h, totals + h);
        mix(scores, corrections, tile, next->num == tile->num ? next->keys : NULL, out, dim, heads);
        swapped = tile, tile = next, next = swapped;
    }
    for (ptrdiff_t h = 0; h < heads; h++)
        for (ptrdiff_t d = 0; d < dim; d++)
            out[h * dim + d] /= totals[h];
}

void penstock_decode(
    const struct place *place, ptrdiff_t layer, const float *queries, ptrdiff_t num_lines, ptrdiff_t num_heads,
    const int64_t *rows, const int64_t *positions, const int64_t *tables, ptrdiff_t width, ptrdiff_t window,
    float scale, float *out, ptrdiff_t num_threads
) {
    struct attention job = {place, layer, num_heads, width, window, queries, rows, positions, tables, scale, out};
    run(attend, &job, num_lines * place->num_kv_heads, num_threads);
}
