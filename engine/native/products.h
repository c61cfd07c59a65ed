/* Products with weights, for few lines.
 * out[n][o] = x[n] . weight[o] + bias[o]. A panel of weight rows is read from memory once, all lines are multiplied by
 * it while it is in cache. Each sum runs over the inputs in the same order in every tile, so lines do not depend on
 * each other. */

#define PANEL 12
#define DEPTH 512 /* inputs at a time: a panel of them and four lines stay in the first cache */
#define AT_ONCE 5 /* lines: with more, weights are multiplied in several passes */
#define PIECE_BYTES (192 << 10)

struct product {
    const float *x, *weight, *scales, *bias;
    const int8_t *weight8;
    float *out;
    ptrdiff_t num_lines, in, num_out, panels_per_piece;
};

/* Some inputs of one panel of weight rows, to be multiplied by all lines. */
struct unit {
    const float *x;
    const char *w;
    ptrdiff_t in, depth, num_rows, num_lines;
    float *kept; /* the first pass leaves the weights here for the others, close together and as floats */
    vec *partial;
    int is_first, bytes; /* of a weight */
    const char *ahead;   /* the next unit's weights */
    ptrdiff_t fetched;   /* rows of them that were fetched */
};

enum source { ROWS_ONCE, ROWS_KEPT, KEPT };

/* Sums of `rows` weight rows and `lines` lines over a unit, onto those in `partial` (or onto nothing). */
INLINE void tile(
    const struct unit *u, ptrdiff_t row, ptrdiff_t n, const int fetching, const enum source source, const int bytes,
    const int rows, const int lines
) {
    vec sums[24], *partial = u->partial + row * u->num_lines + n;
    const float *x = u->x + n * u->in;
    const char *w = u->w + row * u->in * bytes, *ahead = u->ahead + u->fetched * u->in * bytes;
    float *kept = u->kept + row * u->depth;
    const ptrdiff_t depth = u->depth, in = u->in;
    UNROLLED for (int r = 0; r < rows; r++) {
        UNROLLED for (int l = 0; l < lines; l++)
            sums[r * lines + l] = u->is_first ? (vec){} : partial[r * u->num_lines + l];
    }
    for (ptrdiff_t i = 0; i + LANES <= depth; i += LANES) {
        vec weights[8];
        UNROLLED for (int r = 0; r < rows; r++) {
            const char *at = w + (r * in + i) * bytes;
            if (source == KEPT)
                weights[r] = load(kept + i * rows + r * LANES);
            else
                weights[r] = bytes == 4 ? load((const float *)at) : load_bytes((const int8_t *)at);
            HOLD(weights[r]);
            if (source == ROWS_KEPT)
                store(kept + i * rows + r * LANES, weights[r]);
        }
        if (fetching && i * bytes % 64 == 0) {
            UNROLLED for (int r = 0; r < fetching; r++)
                __builtin_prefetch(ahead + (r * in + i) * bytes, 0, 2);
        }
        UNROLLED for (int l = 0; l < lines; l++) {
            vec each = load(x + l * in + i);
            HOLD(each);
            UNROLLED for (int r = 0; r < rows; r++)
                sums[r * lines + l] = fused(weights[r], each, sums[r * lines + l]);
        }
    }
    UNROLLED for (int r = 0; r < rows; r++) {
        UNROLLED for (int l = 0; l < lines; l++) partial[r * u->num_lines + l] = sums[r * lines + l];
    }
}

/* `lines` lines from line n on with a whole unit. `rows` divides PANEL; a smaller panel's rest goes row by row. */
INLINE void pass_over(
    struct unit *u, ptrdiff_t n, const int fetching, const enum source source, const int bytes, const int rows,
    const int lines
) {
    ptrdiff_t row = 0;
    for (; row + rows <= u->num_rows && u->fetched + fetching <= PANEL; row += rows, u->fetched += fetching)
        tile(u, row, n, fetching, source, bytes, rows, lines);
    for (; row + rows <= u->num_rows; row += rows)
        tile(u, row, n, 0, source, bytes, rows, lines);
    for (; row < u->num_rows; row++)
        tile(u, row, n, 0, source == KEPT ? ROWS_ONCE : source, bytes, 1, lines);
}

INLINE void pass(
    struct unit *u, ptrdiff_t n, const int fetching, const enum source source, const int rows, const int lines
) {
    if (u->bytes == 4)
        pass_over(u, n, fetching, source, 4, rows, lines);
    else
        pass_over(u, n, fetching, source, 1, rows, lines);
}

static void few_lines(struct unit *u) {
    if (u->num_lines == 5)
        pass(u, 0, 2, ROWS_ONCE, 2, 5);
    else if (u->num_lines == 4 && u->bytes == 1) /* unpacking needs registers too */
        pass(u, 0, 2, ROWS_ONCE, 2, 4);
    else if (u->num_lines == 4)
        pass(u, 0, ROWS, ROWS_ONCE, ROWS, 4);
    else if (u->num_lines == 3)
        pass(u, 0, ROWS, ROWS_ONCE, ROWS, 3);
    else if (u->num_lines == 2)
        pass(u, 0, 4, ROWS_ONCE, 4, 2);
    else
        pass(u, 0, 6, ROWS_ONCE, 6, 1);
}

static void many_lines(struct unit *u) {
    ptrdiff_t n = 4, left = u->num_lines % 4;
    pass(u, 0, 2, ROWS_KEPT, ROWS, 4);
    for (; n + 4 <= u->num_lines; n += 4)
        pass(u, n, 2, KEPT, ROWS, 4);
    if (left == 3)
        pass(u, n, 2, KEPT, ROWS, 3);
    else if (left == 2)
        pass(u, n, 2, KEPT, ROWS, 2);
    else if (left == 1)
        pass(u, n, 2, KEPT, ROWS, 1);
}

INLINE float weight_at(const struct product *p, ptrdiff_t row, ptrdiff_t i) {
    return p->weight8 ? p->weight8[row * p->in + i] : p->weight[row * p->in + i];
}

static void finish_panel(const struct product *p, ptrdiff_t first, ptrdiff_t num_rows, const vec *partial) {
    ptrdiff_t tail = p->in / LANES * LANES;
    for (ptrdiff_t r = 0; r < num_rows; r++) {
        float factor = p->scales ? p->scales[first + r] : 1.0f, bias = p->bias ? p->bias[first + r] : 0.0f;
        for (ptrdiff_t n = 0; n < p->num_lines; n++) {
            float total = sum(partial[r * p->num_lines + n]);
            for (ptrdiff_t i = tail; i < p->in; i++)
                total += weight_at(p, first + r, i) * p->x[n * p->in + i];
            p->out[n * p->num_out + first + r] = total * factor + bias;
        }
    }
}

static void multiply(const void *job, ptrdiff_t piece) {
    const struct product *p = job;
    int bytes = p->weight8 ? 1 : 4;
    const char *weights = p->weight8 ? (const char *)p->weight8 : (const char *)p->weight;
    ptrdiff_t begin = piece * p->panels_per_piece * PANEL, in = p->in, depth = p->num_lines > AT_ONCE ? DEPTH : in;
    ptrdiff_t end = MIN(p->num_out, begin + p->panels_per_piece * PANEL);
    vec partial[PANEL * p->num_lines];
    float kept[PANEL * DEPTH] __attribute__((aligned(64)));
    for (ptrdiff_t first = begin; first < end; first += PANEL) {
        ptrdiff_t num_rows = MIN(PANEL, end - first);
        for (ptrdiff_t i = 0; i < in; i += depth) {
            const char *w = weights + (first * in + i) * bytes;
            const char *ahead = i + depth < in ? w + depth * bytes : weights + (first + PANEL) * in * bytes;
            struct unit unit = {
                .x = p->x + i, .w = w, .in = in, .depth = MIN(depth, in - i), .num_rows = num_rows,
                .num_lines = p->num_lines, .kept = kept, .partial = partial, .is_first = i == 0, .bytes = bytes,
                .ahead = ahead,
            };
            if (p->num_lines > AT_ONCE)
                many_lines(&unit);
            else
                few_lines(&unit);
        }
        finish_panel(p, first, num_rows, partial);
    }
}

#define MOST_LINES 64 /* at a time: more would need as much stack again */

static void multiply_all(struct product job, ptrdiff_t bytes_per_weight, ptrdiff_t num_threads) {
    ptrdiff_t panel_bytes = PANEL * job.in * bytes_per_weight, num_panels = (job.num_out + PANEL - 1) / PANEL;
    job.panels_per_piece = MAX(1, PIECE_BYTES / MAX(1, panel_bytes));
    ptrdiff_t num_pieces = (num_panels + job.panels_per_piece - 1) / job.panels_per_piece;
    for (ptrdiff_t left = job.num_lines; left > 0; left -= MOST_LINES) {
        job.num_lines = MIN(left, MOST_LINES);
        run(multiply, &job, num_pieces, num_threads);
        job.x += MOST_LINES * job.in, job.out += MOST_LINES * job.num_out;
    }
}

void penstock_linear(
    const float *x, const float *weight, const float *bias, float *out, ptrdiff_t num_lines, ptrdiff_t in,
    ptrdiff_t num_out, ptrdiff_t num_threads
) {
    multiply_all((struct product){x, weight, NULL, bias, NULL, out, num_lines, in, num_out, 0}, 4, num_threads);
}

void penstock_linear_int8(
    const float *x, const int8_t *weight, const float *scales, const float *bias, float *out, ptrdiff_t num_lines,
    ptrdiff_t in, ptrdiff_t num_out, ptrdiff_t num_threads
) {
    multiply_all((struct product){x, NULL, scales, bias, weight, out, num_lines, in, num_out, 0}, 1, num_threads);
}

struct unpacking {
    const int8_t *weight;
    const float *scales;
    float *out;
    ptrdiff_t in;
};

static void unpack_row(const void *job, ptrdiff_t row) {
    const struct unpacking *u = job;
    const int8_t *from = u->weight + row * u->in;
    float *to = u->out + row * u->in, scale = u->scales[row];
    ptrdiff_t i = 0;
    for (; i + LANES <= u->in; i += LANES)
        store(to + i, load_bytes(from + i) * scale);
    for (; i < u->in; i++)
        to[i] = from[i] * scale;
}

void penstock_unpack_int8(
    const int8_t *weight, const float *scales, float *out, ptrdiff_t num_rows, ptrdiff_t in, ptrdiff_t num_threads
) {
    struct unpacking job = {weight, scales, out, in};
    run(unpack_row, &job, num_rows, threads_for(num_rows * in, num_threads));
}
