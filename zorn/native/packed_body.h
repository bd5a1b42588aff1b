/* An LSTM over a chunk of time on packed weights: for each step, 16 units and a tile of rows the product with
 * [x h], then the gates while they are in the cache. Float32 in vector registers, bfloat16 in AMX tiles. Each
 * gate is summed over the inputs in one order, whatever the tile: a row's result is its own. */
#include <immintrin.h>

#define UNITS 16 /* of a panel: 4 gates of 16 units */
#define TILE_ROWS 32
#define FLOAT_ROWS 6
#define STEP_BYTES (4 * UNITS * 4) /* of a panel for one pair of bfloat16 inputs, or one float32 */

ALWAYS uint32_t word_at(const void *row, int64_t word, int64_t count, int half) {
    if (!half) return word < count ? ((const uint32_t *)row)[word] : 0;
    const uint16_t *pair = (const uint16_t *)row + 2 * word;
    return (2 * word < count ? pair[0] : 0) | (uint32_t)(2 * word + 1 < count ? pair[1] : 0) << 16;
}

/* One weight, rows of 4 gates of d units, into [words, gates, UNITS] words of a panel. */
ALWAYS void pack_rows(uint32_t *to, const void *weight, int64_t first, int64_t size, int64_t count, int half) {
    int64_t words = words_of(count, half), bytes = half ? 2 : 4, full = half ? count / 2 : count;
    for (int64_t gate = 0; gate < 4; gate++)
        for (int64_t unit = 0; unit < UNITS; unit++) {
            const char *row = (const char *)weight + (gate * size + first + unit) * count * bytes;
            int there = first + unit < size;
            for (int64_t word = 0; word < words; word++) {
                /* An AMX tile holds 16 words of one gate. */
                int64_t place = half ? (word / 16 * 4 + gate) * 256 + word % 16 * 16 + unit
                                     : (word * 4 + gate) * 16 + unit;
                if (!there)
                    to[place] = 0;
                else if (word < full)
                    memcpy(to + place, row + 4 * word, 4);
                else
                    to[place] = word_at(row, word, count, half);
            }
        }
}

/* The row factors of a panel's units, [members, rank, gates, UNITS], so that a tile reads them in a row. */
ALWAYS void pack_factors(const Rollout *all, int64_t panel, int64_t head, int64_t first, int half) {
    int64_t d = all->size, bytes = half ? 2 : 4, count = d - first < UNITS ? d - first : UNITS;
    const Noise *noise = all->state_noise;
    char *to = (char *)all->factors + panel * noise->members * noise->rank * 4 * UNITS * bytes;
    for (int64_t member = 0; member < noise->members; member++)
        for (int64_t i = 0; i < noise->rank; i++)
            for (int64_t gate = 0; gate < 4; gate++, to += UNITS * bytes) {
                int64_t place = ((member * all->heads + head) * 4 + gate) * d + first;
                memset(to, 0, (size_t)(UNITS * bytes));
                memcpy(to, (const char *)noise->rows[i] + place * bytes, (size_t)(count * bytes));
            }
}

ALWAYS void pack_panels(const Rollout *all, int64_t begin, int64_t end, int half) {
    int64_t d = all->size, k = all->inputs, bytes = half ? 2 : 4, panels = (d + UNITS - 1) / UNITS;
    int64_t words = words_of(k, half) + words_of(d, half);
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t head = panel / panels, first = panel % panels * UNITS;
        uint32_t *to = (uint32_t *)((char *)all->packed + panel * words * STEP_BYTES);
        pack_rows(to, (const char *)all->weight_input + head * 4 * d * k * bytes, first, d, k, half);
        to += words_of(k, half) * 4 * UNITS;
        pack_rows(to, (const char *)all->weight_state + head * 4 * d * d * bytes, first, d, d, half);
        if (all->state_noise) pack_factors(all, panel, head, first, half);
    }
}

static void pack_float32(const void *all, int64_t begin, int64_t end) { pack_panels(all, begin, end, 0); }
static void pack_bfloat16(const void *all, int64_t begin, int64_t end) { pack_panels(all, begin, end, 1); }

/* gates [FLOAT_ROWS, 4, UNITS] += rows [FLOAT_ROWS, count] × panel [count, 4, UNITS]. */
ALWAYS void float_tile(Floats gates[FLOAT_ROWS][4], const float *rows, int64_t stride, const float *panel,
                       int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        Floats weights[4];
        for (int gate = 0; gate < 4; gate++) memcpy(&weights[gate], panel + (k * 4 + gate) * UNITS, 64);
#pragma GCC unroll 6
        for (int row = 0; row < FLOAT_ROWS; row++) {
            Floats x = rows[row * stride + k] - (Floats){0};
#pragma GCC unroll 4
            for (int gate = 0; gate < 4; gate++) gates[row][gate] += x * weights[gate];
        }
    }
}

/* Tiles 0 to 3: two gates of two times 16 rows. */
ALWAYS void amx_steps(const uint16_t *rows, int64_t stride, const char *panel, int64_t pair, int64_t words) {
    for (int64_t word = 0; word < words; word += 16) {
        _tile_loadd(4, rows + 2 * word, (size_t)stride * 2);
        _tile_loadd(5, rows + 16 * stride + 2 * word, (size_t)stride * 2);
        const char *tiles = panel + (word / 16 * 4 + 2 * pair) * 1024;
        _tile_loadd(6, tiles, 64);
        _tile_loadd(7, tiles + 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

ALWAYS void amx_tile(float gates[TILE_ROWS][4][UNITS], const uint16_t *x, const uint16_t *h, int64_t stride,
                     const char *panel, int64_t input_words, int64_t state_words) {
    for (int64_t pair = 0; pair < 2; pair++) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        amx_steps(x, stride, panel, pair, input_words);
        amx_steps(h, stride, panel + input_words * STEP_BYTES, pair, state_words);
        _tile_stored(0, gates[0][2 * pair], 256);
        _tile_stored(1, gates[0][2 * pair + 1], 256);
        _tile_stored(2, gates[16][2 * pair], 256);
        _tile_stored(3, gates[16][2 * pair + 1], 256);
    }
}

/* A tile's gates to c' and h'. */
ALWAYS void finish_tile(const Rollout *all, int64_t step, int64_t row, int64_t count_rows, int64_t head,
                        int64_t first, const float *gates, const float *coefficients, const float *cell,
                        void *next, int64_t stride, int half) {
    int64_t d = all->size, hidden = all->heads * d, count = d - first < UNITS ? d - first : UNITS;
    const Noise *noise = all->state_noise;
    int64_t rank = noise ? noise->rank : 0, panel = head * ((d + UNITS - 1) / UNITS) + first / UNITS;
    int64_t width = noise ? noise->members * rank * 4 * UNITS : 0;
    const void *factors = NAME(at)(all->factors, panel * width, half);
    for (int64_t r = 0; r < count_rows; r++) {
        int64_t member = noise ? (row + r) / all->group % noise->members : 0;
        const float *own = coefficients + r * all->heads * rank;
        Floats sums[4];
        for (int64_t gate = 0; gate < 4; gate++) {
            int64_t place = (head * 4 + gate) * d + first;
            memcpy(&sums[gate], gates + (r * 4 + gate) * UNITS, 64);
            sums[gate] += NAME(load)(all->bias, place, count, half);
            for (int64_t i = 0; i < rank; i++)
                sums[gate] += own[i] * NAME(load)(factors, ((member * rank + i) * 4 + gate) * UNITS, UNITS, half);
        }
        int64_t units = (row + r) * hidden + head * d + first;
        Floats below, above = NAME(tanh_parts)(sums[3], &below);
        Floats kept = NAME(load)(cell, units, count, 0) / NAME(sigmoid_inverse)(sums[1]);
        kept += above / (NAME(sigmoid_inverse)(sums[0]) * below);
        above = NAME(tanh_parts)(kept, &below);
        Floats y = above / (NAME(sigmoid_inverse)(sums[2]) * below);
        NAME(store)(all->next_cell, units, count, 0, kept);
        NAME(store)(all->outputs, step * all->rows * hidden + units, count, half, y);
        NAME(store)(next, r * stride, count, half, y);
    }
}

/* All steps for some tiles of rows. Scratch of a row: [x | h of each head | the next h of each head], padded,
 * then the noise's coefficients. */
ALWAYS void rollout_tiles(const Rollout *all, int64_t begin, int64_t end, int half) {
    int64_t tile = half ? TILE_ROWS : FLOAT_ROWS, bytes = half ? 2 : 4, d = all->size, heads = all->heads;
    int64_t input_words = words_of(all->inputs, half), state_words = words_of(d, half), in_word = half ? 2 : 1;
    int64_t panels = (d + UNITS - 1) / UNITS, panel_bytes = (input_words + state_words) * STEP_BYTES;
    int64_t head_stride = state_words * in_word, state_at = input_words * in_word;
    int64_t stride = state_at + 2 * heads * head_stride;
    int64_t first_row = begin * tile, last_row = end * tile < all->rows ? end * tile : all->rows;
    int64_t rank = all->state_noise ? all->state_noise->rank : 0;
    char *scratch = (char *)all->scratch + first_row * stride * bytes;
    float *coefficients = all->coefficients + first_row * heads * rank;
    memset(scratch, 0, (size_t)((end - begin) * tile * stride * bytes));
    for (int64_t row = first_row; row < last_row; row++)
        for (int64_t head = 0; head < heads; head++)
            memcpy(scratch + ((row - first_row) * stride + state_at + head * head_stride) * bytes,
                   (const char *)all->hidden + (row * heads + head) * d * bytes, (size_t)(d * bytes));
    for (int64_t step = 0; step < all->time; step++) {
        int64_t now = state_at + step % 2 * heads * head_stride;
        int64_t then = state_at + (step + 1) % 2 * heads * head_stride;
        for (int64_t row = first_row; row < last_row; row++) {
            char *own = scratch + (row - first_row) * stride * bytes;
            memcpy(own, (const char *)all->x + (step * all->x_step + row * all->x_row) * bytes,
                   (size_t)(all->inputs * bytes));
            if (!rank) continue;
            float carried[MAXIMUM_RANK] = {0};
            int64_t member = row / all->group % all->state_noise->members;
            if (all->input_noise)
                for (int64_t i = 0; i < rank; i++)
                    carried[i] = NAME(score)(all->input_noise, i, member, all->inputs, own, half);
            for (int64_t head = 0; head < heads; head++)
                NAME(coefficients)(all->state_noise, all->group, row, head, heads, d,
                                   own + (now + head * head_stride) * bytes, carried, half,
                                   coefficients + ((row - first_row) * heads + head) * rank);
        }
        const float *cell = step ? all->next_cell : all->cell;
        for (int64_t head = 0; head < heads; head++)
            for (int64_t panel = 0; panel < panels; panel++) {
                const char *weights = (const char *)all->packed + (head * panels + panel) * panel_bytes;
                for (int64_t row = first_row; row < last_row; row += tile) {
                    char *rows = scratch + (row - first_row) * stride * bytes;
                    const char *h = rows + (now + head * head_stride) * bytes;
                    float gates[TILE_ROWS][4][UNITS] __attribute__((aligned(64)));
                    if (half)
                        amx_tile(gates, (void *)rows, (void *)h, stride, weights, input_words, state_words);
                    else {
                        Floats sums[FLOAT_ROWS][4] = {0};
                        float_tile(sums, (void *)rows, stride, (void *)weights, input_words);
                        float_tile(sums, (void *)h, stride,
                                   (void *)(weights + input_words * STEP_BYTES), state_words);
                        memcpy(gates, sums, sizeof sums);
                    }
                    int64_t there = last_row - row < tile ? last_row - row : tile;
                    finish_tile(all, step, row, there, head, panel * UNITS, gates[0][0],
                                coefficients + ((row - first_row) * heads + head) * rank, cell,
                                rows + (then + head * head_stride + panel * UNITS) * bytes, stride, half);
                }
            }
    }
}

static void rollout_float32(const void *all, int64_t begin, int64_t end) { rollout_tiles(all, begin, end, 0); }

static void rollout_bfloat16(const void *all, int64_t begin, int64_t end) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } tiles = {.palette = 1}, before;
    for (int tile = 0; tile < 8; tile++) tiles.columns[tile] = 64, tiles.rows[tile] = 16;
    _tile_storeconfig(&before);
    _tile_loadconfig(&tiles);
    rollout_tiles(all, begin, end, 1);
    _tile_loadconfig(&before); /* oneDNN's, as it left them */
}
