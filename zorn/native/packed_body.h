/* An LSTM over a chunk of time on packed weights: for each step, 16 units and a tile of rows the product with
 * [x h], then the gates while they are in the cache. Float32 in vector registers, bfloat16 in AMX tiles. Each
 * gate is summed over the inputs in one order, whatever the tile: a row's result is its own.
 *
 * All that is packed lies in blocks of 16 words of 4 bytes (a float32, or a pair of bfloat16): 64 bytes, a
 * cache line, a row of an AMX tile. */

/* The member of a row: the first of the 16 lanes of a tile that begins there. */
ALWAYS int64_t lane_of(const Rollout *all, int64_t row) {
    return row / all->group % all->state_noise->members;
}

ALWAYS int64_t rows_of(const Rollout *all, const Layout *at, int64_t tile) {
    int64_t left = all->rows - tile * at->rows;
    return left < at->rows ? left : at->rows;
}

/* `count` elements, up to a block; zeros behind them. */
ALWAYS __m512i load_block(const void *from, int64_t count, int half) {
    if (half) return _mm512_maskz_loadu_epi16(count < 32 ? (1u << count) - 1 : ~0u, from);
    return _mm512_maskz_loadu_epi32(count < 16 ? (1u << count) - 1 : 0xffff, from);
}

ALWAYS void transpose(__m512i rows[16]) {
    __m512i pairs[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
            fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) {
        __m512i even = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
        __m512i odd = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
        __m512i even_last = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
        __m512i odd_last = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_i32x4(even, even_last, 0x88);
        rows[4 + j] = _mm512_shuffle_i32x4(odd, odd_last, 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(even, even_last, 0xdd);
        rows[12 + j] = _mm512_shuffle_i32x4(odd, odd_last, 0xdd);
    }
}

/* One weight, rows of 4 gates of d units, into [blocks, gates, words, UNITS] of a panel; float32 into [blocks,
 * words, gates, UNITS]. */
ALWAYS void pack_weight(char *to, const char *weight, int64_t first, int64_t size, int64_t count, int half) {
    int64_t bytes = half ? 2 : 4, elements = half ? 32 : 16, there = size - first;
    for (int64_t k = 0; k < count; k += elements, to += 4 * TILE)
        for (int64_t gate = 0; gate < 4; gate++) {
            __m512i words[UNITS];
            const char *from = weight + ((gate * size + first) * count + k) * bytes;
            for (int64_t unit = 0; unit < UNITS; unit++)
                words[unit] = unit < there ? load_block(from + unit * count * bytes, count - k, half)
                                           : _mm512_setzero_si512();
            transpose(words);
            for (int64_t word = 0; word < UNITS; word++) {
                int64_t place = half ? gate * UNITS + word : word * 4 + gate;
                _mm512_store_si512(to + place * 64, words[word]);
            }
        }
}

/* The row factors of a panel's units, words [rank, lanes, gates, UNITS]: a bfloat16 twice, for the two parts
 * of its coefficient. */
ALWAYS void pack_factors(const Rollout *all, const Layout *at, char *to, int64_t head, int64_t first,
                         int half) {
    int64_t d = all->size, bytes = half ? 2 : 4, count = d - first < UNITS ? d - first : UNITS;
    const Noise *noise = all->state_noise;
    for (int64_t i = 0; i < at->rank; i++)
        for (int64_t lane = 0; lane < at->lanes; lane++)
            for (int64_t gate = 0; gate < 4; gate++, to += 64) {
                int64_t place = ((lane % noise->members * all->heads + head) * 4 + gate) * d + first;
                __m512i words = load_block((const char *)noise->rows[i] + place * bytes, count, half);
                if (half) {
                    words = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
                    words = _mm512_or_si512(words, _mm512_slli_epi32(words, 16));
                }
                _mm512_store_si512(to, words);
            }
}

ALWAYS void pack_panels(const Rollout *all, int64_t begin, int64_t end, int half) {
    const Layout at = layout_of(all, half);
    int64_t d = all->size, k = all->inputs, bytes = half ? 2 : 4;
    for (int64_t panel = begin; panel < end; panel++) {
        int64_t head = panel / at.panels, first = panel % at.panels * UNITS;
        int64_t count = d - first < UNITS ? d - first : UNITS;
        char *to = (char *)all->packed + panel * at.panel;
        for (int64_t gate = 0; gate < 4; gate++) {
            Floats bias = NAME(load)(all->bias, (head * 4 + gate) * d + first, count, half);
            memcpy(to + gate * 64, &bias, 64);
        }
        to += GATES;
        pack_weight(to, (const char *)all->weight_input + head * 4 * d * k * bytes, first, d, k, half);
        to += at.input * 4 * TILE;
        pack_weight(to, (const char *)all->weight_state + head * 4 * d * d * bytes, first, d, d, half);
        if (at.rank)
            pack_factors(all, &at, (char *)all->factors + panel * at.factors, head, first, half);
    }
}

static void pack_float32(const void *all, int64_t begin, int64_t end) { pack_panels(all, begin, end, 0); }
static void pack_bfloat16(const void *all, int64_t begin, int64_t end) { pack_panels(all, begin, end, 1); }

/* b_i·x + c_i of one member and block; x in blocks. */
ALWAYS float block_score(const Noise *noise, int64_t i, int64_t own, int64_t count, const char *x,
                         int64_t block, int half) {
    int64_t elements = half ? 32 : 16;
    const char *b = (const char *)noise->columns[i] + own * count * (half ? 2 : 4);
    __m512 totals[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (noise->columns[i])
        for (int64_t k = 0; k < count; k += elements, x += block, b += 64) {
            __m512i left = _mm512_load_si512(x), right = load_block(b, count - k, half);
            int part = k / elements % 2;
            if (half)
                totals[part] = _mm512_dpbf16_ps(totals[part], (__m512bh)left, (__m512bh)right);
            else
                totals[part] = _mm512_fmadd_ps((__m512)left, (__m512)right, totals[part]);
        }
    float score = NAME(sum)((Floats)(totals[0] + totals[1]));
    return noise->offsets[i] ? score + NAME(load)(noise->offsets[i], own, 1, half)[0] : score;
}

/* s ε / √rank (b_i·h + c_i + the same of x) of row r of a tile that begins at `row`, for all heads and ranks.
 * Float32: [head, rank, row]. Bfloat16: [head, rank, row, lane], zero but in the row's own of its 16 lanes,
 * where there are two bfloat16 that add up to it. */
ALWAYS void row_coefficients(const Rollout *all, const Layout *at, int64_t row, int64_t r, const char *x,
                             const char *h, char *to, int half) {
    const Noise *of_state = all->state_noise, *of_input = all->input_noise;
    int64_t member = lane_of(all, row + r), lane = (row + r) / all->group - (row + r / 16 * 16) / all->group;
    float scale = of_state->scale[(row + r) / all->group / of_state->members], carried[MAXIMUM_RANK] = {0};
    if (of_input)
        for (int64_t i = 0; i < at->rank; i++)
            carried[i] = block_score(of_input, i, member, all->inputs, x + r * 64, at->block, half);
    for (int64_t head = 0; head < all->heads; head++, h += at->state * at->block)
        for (int64_t i = 0; i < at->rank; i++, to += at->rows * (half ? 64 : 4)) {
            int64_t own = member * all->heads + head;
            float score = block_score(of_state, i, own, all->size, h + r * 64, at->block, half);
            float found = scale * (carried[i] + score);
            uint32_t word, rest;
            memcpy(&word, &found, 4);
            if (!half) {
                memcpy(to + r * 4, &word, 4);
                continue;
            }
            word &= 0xffff0000;
            float first;
            memcpy(&first, &word, 4);
            first = found - first;
            memcpy(&rest, &first, 4);
            word |= rest >> 16;
            memcpy(to + r * 64 + lane * 4, &word, 4);
        }
}

/* gates [FLOAT_ROWS, 4, UNITS] += rows [blocks, FLOAT_ROWS, 16] × panel [blocks, 16, 4, UNITS]. */
ALWAYS void float_product(Floats gates[FLOAT_ROWS][4], const float *rows, const float *panel, int64_t count) {
    for (int64_t block = 0; block < count; block += 16, rows += FLOAT_ROWS * 16, panel += 4 * 16 * UNITS)
        for (int64_t k = 0; k < 16 && k < count - block; k++) {
            Floats weights[4];
            for (int gate = 0; gate < 4; gate++) memcpy(&weights[gate], panel + (k * 4 + gate) * UNITS, 64);
#pragma GCC unroll 6
            for (int row = 0; row < FLOAT_ROWS; row++) {
                Floats x = rows[row * 16 + k] - (Floats){0};
#pragma GCC unroll 4
                for (int gate = 0; gate < 4; gate++) gates[row][gate] += x * weights[gate];
            }
        }
}

/* Bias, product and noise of one panel and tile of rows, in vector registers. */
ALWAYS void float_tile(const Rollout *all, const Layout *at, float *gates, int64_t row, const char *x,
                       const char *h, const char *panel, const char *factors, const float *coefficients) {
    Floats sums[FLOAT_ROWS][4];
    for (int r = 0; r < FLOAT_ROWS; r++) memcpy(sums[r], panel, GATES);
    float_product(sums, (const float *)x, (const float *)(panel + GATES), all->inputs);
    panel += GATES + at->input * 4 * TILE;
    float_product(sums, (const float *)h, (const float *)panel, all->size);
    for (int64_t i = 0; i < at->rank; i++)
        for (int64_t r = 0; r < FLOAT_ROWS; r++) {
            const float *own = (const float *)(factors + (i * at->lanes + lane_of(all, row + r)) * GATES);
            for (int gate = 0; gate < 4; gate++)
                sums[r][gate] += coefficients[i * FLOAT_ROWS + r] * NAME(load)(own, gate * UNITS, UNITS, 0);
        }
    memcpy(gates, sums, sizeof sums);
}

/* The same in AMX tiles 0 to 3, two gates of two times 16 rows at a time. The noise is a product as well: of
 * the coefficients, [row, lane], with the row factors of 16 lanes. Each turn brings so many cache lines of the
 * next panel's weights closer, from `ahead` on. */
ALWAYS void amx_tile(const Rollout *all, const Layout *at, float *gates, int64_t row, const char *x,
                     const char *h, const char *panel, const char *factors, const char *coefficients,
                     const char *ahead, int64_t lines) {
    int64_t blocks = at->input + at->state;
    for (int64_t pair = 0; pair < 2; pair++) {
        const char *bias = panel + pair * 128, *weights = panel + GATES + pair * 2 * TILE, *rows = x;
        _tile_loadd(0, bias, 0);
        _tile_loadd(1, bias + 64, 0);
        _tile_loadd(2, bias, 0);
        _tile_loadd(3, bias + 64, 0);
        for (int64_t block = 0; block < blocks; block++, rows += AMX_ROWS * 64, weights += 4 * TILE) {
            if (block == at->input) rows = h;
            for (int64_t line = 0; line < lines; line++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
            _tile_loadd(4, rows, 64);
            _tile_loadd(5, rows + TILE, 64);
            _tile_loadd(6, weights, 64);
            _tile_loadd(7, weights + TILE, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        for (int64_t i = 0; i < at->rank; i++) {
            const char *first = factors + (i * at->lanes + lane_of(all, row)) * GATES + pair * 128;
            const char *second = factors + (i * at->lanes + lane_of(all, row + 16)) * GATES + pair * 128;
            _tile_loadd(4, coefficients + 2 * i * TILE, 64);
            _tile_loadd(5, coefficients + (2 * i + 1) * TILE, 64);
            _tile_loadd(6, first, GATES);
            _tile_loadd(7, first + 64, GATES);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(6, second, GATES);
            _tile_loadd(7, second + 64, GATES);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        float *to = gates + pair * 2 * UNITS;
        _tile_stored(0, to, GATES);
        _tile_stored(1, to + UNITS, GATES);
        _tile_stored(2, to + 16 * 4 * UNITS, GATES);
        _tile_stored(3, to + 16 * 4 * UNITS + UNITS, GATES);
    }
}

/* 1 + e⁻ˣ, up to 2⁴⁸, so that products of three stay finite. 2ʳ for 0 ≤ r < 1 is the polynomial of least
 * largest error, 8e-8 (Lawson 1961). */
ALWAYS __m512 inverse_sigmoid(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(48), x * _mm512_set1_ps(-1.44269504f)); /* NaN stays one */
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = r * 0.00186713f + 0.009017031f;
    p = p * r + 0.055799913f;
    p = p * r + 0.24016444f;
    p = p * r + 0.6931513f;
    return _mm512_scalef_ps(p * r + 1.0f, x) + 1.0f;
}

/* tanh x = t / (t + 2) for t = e²ˣ − 1, up to 2³⁰: the relative error is small near 0 as well. */
ALWAYS __m512 tanh_numerator(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(30), x * _mm512_set1_ps(2.88539008f));
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 power = _mm512_scalef_ps(_mm512_set1_ps(1), whole);
    __m512 p = r * 0.00015403512f + 0.0013390735f;
    p = p * r + 0.009618238f;
    p = p * r + 0.055503573f;
    p = p * r + 0.24022649f;
    p = p * r + 0.6931472f;
    return power * (p * r) + (power - 1.0f);
}

/* c' = σ(f) c + σ(i) tanh(u) and h' = σ(o) tanh(c') of a tile's gates, a division each; `next`: where the next
 * h of the head lies. */
ALWAYS void finish_tile(const Rollout *all, const Layout *at, int64_t step, int64_t tile, int64_t head,
                        int64_t first, const float *gates, char *next, int half) {
    int64_t d = all->size, width = all->heads * d, count = d - first < UNITS ? d - first : UNITS;
    int64_t row = tile * at->rows, rows = rows_of(all, at, tile);
    __mmask16 there = (1u << count) - 1;
    const float *cell = step ? all->next_cell : all->cell;
    next += first / (half ? 32 : 16) * at->block + (half ? first % 32 * 2 : 0);
    for (int64_t r = 0; r < rows; r++, gates += 4 * UNITS, next += 64) {
        int64_t units = (row + r) * width + head * d + first, place = step * all->rows * width + units;
        __m512 input = inverse_sigmoid(_mm512_load_ps(gates));
        __m512 forget = inverse_sigmoid(_mm512_load_ps(gates + UNITS));
        __m512 above = tanh_numerator(_mm512_load_ps(gates + 3 * UNITS));
        input *= above + 2.0f;
        __m512 kept = _mm512_maskz_loadu_ps(there, cell + units);
        kept = (kept * input + above * forget) / (input * forget);
        _mm512_mask_storeu_ps(all->next_cell + units, there, kept);
        above = tanh_numerator(kept);
        __m512 y = above / (inverse_sigmoid(_mm512_load_ps(gates + 2 * UNITS)) * (above + 2.0f));
        if (half) {
            __m256i rounded = (__m256i)_mm512_cvtneps_pbh(y);
            _mm256_mask_storeu_epi16((uint16_t *)all->outputs + place, there, rounded);
            _mm256_mask_storeu_epi16(next, there, rounded);
        } else {
            _mm512_mask_storeu_ps((float *)all->outputs + place, there, y);
            _mm512_mask_storeu_ps(next, there, y);
        }
    }
}

/* A row's vector into the blocks of its tile. */
ALWAYS void spread(char *to, const void *from, int64_t count, int64_t block, int half) {
    int64_t elements = half ? 32 : 16;
    const char *next = from;
    for (int64_t k = 0; k < count; k += elements, to += block, next += 64)
        _mm512_store_si512(to, load_block(next, count - k, half));
}

/* The state before the first step, and nothing else, in a tile's scratch memory. */
ALWAYS void begin_tile(const Rollout *all, const Layout *at, int64_t tile, char *scratch, int half) {
    int64_t d = all->size, heads = all->heads, bytes = half ? 2 : 4;
    memset(scratch, 0, (size_t)at->scratch);
    if (at->rank) memset((char *)all->coefficients + tile * at->coefficients, 0, (size_t)at->coefficients);
    for (int64_t r = 0; r < rows_of(all, at, tile); r++)
        for (int64_t head = 0; head < heads; head++) {
            int64_t place = ((tile * at->rows + r) * heads + head) * d;
            spread(scratch + (at->input + head * at->state) * at->block + r * 64,
                   (const char *)all->hidden + place * bytes, d, at->block, half);
        }
}

/* x of a step, and the coefficients of its noise. */
ALWAYS void begin_step(const Rollout *all, const Layout *at, int64_t step, int64_t tile, char *x, const char *h,
                       int half) {
    for (int64_t r = 0; r < rows_of(all, at, tile); r++) {
        int64_t row = tile * at->rows, place = step * all->x_step + (row + r) * all->x_row;
        spread(x + r * 64, (const char *)all->x + place * (half ? 2 : 4), all->inputs, at->block, half);
        if (at->rank)
            row_coefficients(all, at, row, r, x, h, (char *)all->coefficients + tile * at->coefficients, half);
    }
}

/* One step of the units of one panel, for some tiles of rows. */
ALWAYS void panel_step(const Rollout *all, const Layout *at, int64_t step, int64_t panel, int64_t begin,
                       int64_t end, int half) {
    int64_t panels = all->heads * at->panels, head = panel / at->panels, first = panel % at->panels * UNITS;
    int64_t own = at->input + head * at->state, other = own + all->heads * at->state;
    int64_t width = all->heads * all->size, noise_at = head * at->head_coefficients;
    const float *before = (step ? all->next_cell : all->cell) + head * all->size + first;
    const char *weights = (const char *)all->packed + panel * at->panel;
    const char *factors = (const char *)all->factors + panel * at->factors;
    const char *ahead = (const char *)all->packed + (panel + 1) % panels * at->panel + GATES;
    int64_t lines = panels * at->panel > CACHE ? 32 / (end - begin) : 0; /* 64 a block, in 2 turns a tile */
    for (int64_t tile = begin; tile < end; tile++, ahead += 2 * (at->input + at->state) * lines * 64) {
        char *x = (char *)all->scratch + tile * at->scratch;
        char *h = x + (step % 2 ? other : own) * at->block, *next = x + (step % 2 ? own : other) * at->block;
        const char *noise = (const char *)all->coefficients + tile * at->coefficients + noise_at;
        float gates[AMX_ROWS * 4 * UNITS] __attribute__((aligned(64)));
        for (int64_t r = 0; r < rows_of(all, at, tile); r++)
            _mm_prefetch((const char *)(before + (tile * at->rows + r) * width), _MM_HINT_T0);
        if (half)
            amx_tile(all, at, gates, tile * at->rows, x, h, weights, factors, noise, ahead, lines);
        else
            float_tile(all, at, gates, tile * at->rows, x, h, weights, factors, (const float *)noise);
        finish_tile(all, at, step, tile, head, first, gates, next, half);
    }
}

/* All steps for some tiles of rows. */
ALWAYS void rollout_tiles(const Rollout *all, int64_t begin, int64_t end, int half) {
    const Layout at = layout_of(all, half);
    char *scratch = (char *)all->scratch;
    for (int64_t tile = begin; tile < end; tile++) begin_tile(all, &at, tile, scratch + tile * at.scratch, half);
    for (int64_t step = 0; step < all->time; step++) {
        int64_t now = (at.input + step % 2 * all->heads * at.state) * at.block;
        for (int64_t tile = begin; tile < end; tile++) {
            char *x = scratch + tile * at.scratch;
            begin_step(all, &at, step, tile, x, x + now, half);
        }
        for (int64_t panel = 0; panel < all->heads * at.panels; panel++)
            panel_step(all, &at, step, panel, begin, end, half);
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
