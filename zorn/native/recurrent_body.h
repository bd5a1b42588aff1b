/* The arithmetic, for one instruction set: NAME(name) is what its functions are called. Sixteen lanes always,
 * whatever the width of a register, so that sums have the same order everywhere. */

#ifndef ZORN_VECTORS
#define ZORN_VECTORS
#define LANES 16
typedef float Floats __attribute__((vector_size(64)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
#endif

ALWAYS Floats NAME(choose)(Ints mask, Floats yes, Floats no) {
    return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no));
}

/* `count` ≤ 16 elements from `place` on; zeros behind them. */
ALWAYS Floats NAME(load)(const void *from, int64_t place, int64_t count, int bfloat16) {
    if (bfloat16) {
        Halves halves = {0};
        if (count == LANES)
            memcpy(&halves, (const uint16_t *)from + place, sizeof halves);
        else
            memcpy(&halves, (const uint16_t *)from + place, (size_t)count * 2);
        return (Floats)(__builtin_convertvector(halves, Words) << 16);
    }
    Floats floats = {0};
    if (count == LANES)
        memcpy(&floats, (const float *)from + place, sizeof floats);
    else
        memcpy(&floats, (const float *)from + place, (size_t)count * 4);
    return floats;
}

/* Rounds to the nearest bfloat16, ties to even. */
ALWAYS void NAME(store)(void *to, int64_t place, int64_t count, int bfloat16, Floats value) {
    if (bfloat16) {
        Words bits = (Words)value;
        Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        Words quiet = (bits >> 16) | 0x40; /* a NaN stays one */
        Ints number = value == value;
        rounded = (rounded & (Words)number) | (quiet & ~(Words)number);
        Halves halves = __builtin_convertvector(rounded, Halves);
        if (count == LANES)
            memcpy((uint16_t *)to + place, &halves, sizeof halves);
        else
            memcpy((uint16_t *)to + place, &halves, (size_t)count * 2);
    } else if (count == LANES)
        memcpy((float *)to + place, &value, sizeof value);
    else
        memcpy((float *)to + place, &value, (size_t)count * 4);
}

ALWAYS float NAME(sum)(Floats value) {
    Eight halves[2];
    memcpy(halves, &value, sizeof value);
    halves[0] += halves[1];
    Four quarters[2];
    memcpy(quarters, halves, sizeof quarters);
    Four last = quarters[0] + quarters[1];
    return (last[0] + last[2]) + (last[1] + last[3]);
}

/* eˣ = 2ⁿ (1 + p): `power` is 2ⁿ and the result p, for −87 ≤ x ≤ 88 (Cody & Waite 1980; polynomial of
 * Moshier's Cephes). NaN stays NaN. */
ALWAYS Floats NAME(exponential)(Floats x, Floats *power) {
    const float to_integer = 12582912.0f; /* 1.5 · 2²³: adding it leaves round(x) in the low bits */
    Floats shifted = x * 1.44269504088896341f + to_integer;
    Floats n = shifted - to_integer;
    *power = (Floats)(((Words)shifted << 23) + 0x3f800000);
    Floats r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Floats q = r * 1.9875691500e-4f + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    return q * (r * r) + r;
}

/* 1 + e⁻ˣ, the inverse of the logistic sigmoid. */
ALWAYS Floats NAME(sigmoid_inverse)(Floats x) {
    const Floats low = {0}, most = low + 87.0f;
    Floats negative = -x, power;
    negative = NAME(choose)(negative > most, most, negative);
    negative = NAME(choose)(negative < -most, -most, negative);
    Floats p = NAME(exponential)(negative, &power);
    return (power + power * p) + 1.0f;
}

/* tanh x = numerator / denominator, from t = e^(−2|x|) − 1: −t / (2 + t), with the sign of x. */
ALWAYS Floats NAME(tanh_parts)(Floats x, Floats *denominator) {
    const Floats zero = {0}, least = zero - 87.0f;
    Words sign = (Words)x & 0x80000000;
    Floats twice = (Floats)((Words)x | 0x80000000) * 2.0f, power;
    twice = NAME(choose)(twice < least, least, twice);
    Floats p = NAME(exponential)(twice, &power);
    Floats t = power * p + (power - 1.0f);
    *denominator = t + 2.0f;
    return (Floats)((Words)t ^ 0x80000000 ^ sign);
}

/* b_i·x + c_i of one member and block. */
ALWAYS float NAME(score)(const Noise *noise, int64_t i, int64_t block, int64_t inputs, const void *x, int half) {
    float score = 0;
    if (noise->columns[i]) {
        Floats totals[4] = {{0}};
        const void *b = noise->columns[i];
        int64_t k = 0, from = block * inputs;
        for (; k + 4 * LANES <= inputs; k += 4 * LANES) /* four sums, not to wait for one */
            for (int part = 0; part < 4; part++) {
                int64_t at = k + part * LANES;
                totals[part] += NAME(load)(x, at, LANES, half) * NAME(load)(b, from + at, LANES, half);
            }
        for (; k < inputs; k += LANES) {
            int64_t count = inputs - k < LANES ? inputs - k : LANES;
            totals[0] += NAME(load)(x, k, count, half) * NAME(load)(b, from + k, count, half);
        }
        score = NAME(sum)((totals[0] + totals[1]) + (totals[2] + totals[3]));
    }
    return noise->offsets[i] ? score + NAME(load)(noise->offsets[i], block, 1, half)[0] : score;
}

/* s ε / √rank (b_i·x + c_i + carried_i) of each rank, for one block of one row. */
ALWAYS void NAME(coefficients)(const Noise *noise, int64_t group, int64_t row, int64_t block, int64_t blocks,
                               int64_t inputs, const void *x, const float *carried, int half, float *found) {
    int64_t own = row / group % noise->members * blocks + block;
    float scale = noise->scale[row / group / noise->members];
    for (int64_t i = 0; i < noise->rank; i++) {
        float score = NAME(score)(noise, i, own, inputs, x, half);
        found[i] = scale * (carried ? score + carried[i] : score);
    }
}

/* The row factors of a row's member, [blocks · outputs], as a place in each `rows[i]`. */
ALWAYS int64_t NAME(factor)(const Noise *noise, int64_t group, int64_t row, int64_t width) {
    return row / group % noise->members * width;
}

ALWAYS Floats NAME(noisy)(Floats y, const Noise *noise, const float *coefficients, int64_t place, int64_t count,
                          int half) {
    for (int64_t i = 0; i < noise->rank; i++)
        y += coefficients[i] * NAME(load)(noise->rows[i], place, count, half);
    return y;
}

ALWAYS const void *NAME(at)(const void *base, int64_t place, int half) {
    return (const char *)base + place * (half ? 2 : 4);
}

#ifndef ARITHMETIC_ONLY

/* (i, f, o, u) = product + drive + bias + noise; c' = σ(f) c + σ(i) tanh(u); h' = σ(o) tanh(c'). */
ALWAYS void NAME(lstm_rows)(const Step *step, int64_t begin, int64_t end, int half) {
    int64_t d = step->size, heads = step->heads;
    float coefficients[MAXIMUM_RANK];
    for (int64_t row = begin; row < end; row++)
        for (int64_t head = 0; head < heads; head++) {
            int64_t units = (row * heads + head) * d, factor = 0;
            const Noise *noise = step->noise;
            if (noise) {
                const float *carried = step->carried ? step->carried + row * noise->rank : 0;
                NAME(coefficients)(noise, step->group, row, head, heads, d, NAME(at)(step->hidden, units, half),
                                   carried, half, coefficients);
                factor = NAME(factor)(noise, step->group, row, heads * 4 * d) + head * 4 * d;
            }
            int64_t product = row * step->product_row + head * step->product_head;
            int64_t drive = row * step->drive_row + head * 4 * d;
            for (int64_t u = 0; u < d; u += LANES) {
                int64_t count = d - u < LANES ? d - u : LANES;
                Floats gates[4];
                for (int gate = 0; gate < 4; gate++) {
                    int64_t place = gate * d + u;
                    gates[gate] = NAME(load)(step->product, product + place, count, half) +
                                  NAME(load)(step->drive, drive + place, count, half);
                    if (step->bias)
                        gates[gate] += NAME(load)(step->bias, head * 4 * d + place, count, half);
                    if (noise)
                        gates[gate] = NAME(noisy)(gates[gate], noise, coefficients, factor + place, count, half);
                }
                Floats below, kept = NAME(load)(step->state, units + u, count, 0);
                Floats output = gates[step->output_last ? 3 : 2], update = gates[step->output_last ? 2 : 3];
                Floats above = NAME(tanh_parts)(update, &below);
                Floats cell = kept / NAME(sigmoid_inverse)(gates[1]);
                cell += above / (NAME(sigmoid_inverse)(gates[0]) * below);
                above = NAME(tanh_parts)(cell, &below);
                Floats hidden = above / (NAME(sigmoid_inverse)(output) * below);
                NAME(store)(step->next_state, units + u, count, 0, cell);
                NAME(store)(step->next_hidden, units + u, count, half, hidden);
            }
        }
}

/* r = σ(x_r + h_r); z = σ(x_z + h_z); n = tanh(x_n + r h_n); h' = (1 − z) n + z h, the h_· being
 * product + bias + noise and the x_· the drive. */
ALWAYS void NAME(gru_rows)(const Step *step, int64_t begin, int64_t end, int half) {
    int64_t d = step->size, heads = step->heads;
    float coefficients[MAXIMUM_RANK];
    for (int64_t row = begin; row < end; row++)
        for (int64_t head = 0; head < heads; head++) {
            int64_t units = (row * heads + head) * d, factor = 0;
            const Noise *noise = step->noise;
            if (noise) {
                NAME(coefficients)(noise, step->group, row, head, heads, d, NAME(at)(step->hidden, units, half),
                                   0, half, coefficients);
                factor = NAME(factor)(noise, step->group, row, heads * 3 * d) + head * 3 * d;
            }
            int64_t product = row * step->product_row + head * step->product_head;
            int64_t drive = row * step->drive_row + head * 3 * d;
            for (int64_t u = 0; u < d; u += LANES) {
                int64_t count = d - u < LANES ? d - u : LANES;
                Floats x[3], h[3];
                for (int gate = 0; gate < 3; gate++) {
                    int64_t place = gate * d + u;
                    x[gate] = NAME(load)(step->drive, drive + place, count, half);
                    h[gate] = NAME(load)(step->product, product + place, count, half);
                    if (step->bias)
                        h[gate] += NAME(load)(step->bias, head * 3 * d + place, count, half);
                    if (noise)
                        h[gate] = NAME(noisy)(h[gate], noise, coefficients, factor + place, count, half);
                }
                Floats below, kept = NAME(load)(step->state, units + u, count, 0);
                Floats above = NAME(tanh_parts)(x[2] + h[2] / NAME(sigmoid_inverse)(x[0] + h[0]), &below);
                Floats candidate = above / below;
                Floats next = candidate + (kept - candidate) / NAME(sigmoid_inverse)(x[1] + h[1]);
                NAME(store)(step->next_state, units + u, count, 0, next);
                if (step->next_hidden) NAME(store)(step->next_hidden, units + u, count, half, next);
            }
        }
}

/* b_i·x + c_i of every position and rank, for maps of one block. */
ALWAYS void NAME(score_rows)(const Affine *map, int64_t begin, int64_t end, int half) {
    const Noise *noise = map->noise;
    for (int64_t position = begin; position < end; position++) {
        int64_t member = position / map->inner % map->rows / map->group % noise->members;
        const void *x = NAME(at)(map->x, position * map->inputs, half);
        for (int64_t i = 0; i < noise->rank; i++)
            ((float *)map->y)[position * noise->rank + i] = NAME(score)(noise, i, member, map->inputs, x, half);
    }
}

/* y += Σ_i s ε / √rank (b_i·x + c_i) a_i, block by block. */
ALWAYS void NAME(rank_one_rows)(const Affine *map, int64_t begin, int64_t end, int half) {
    const Noise *noise = map->noise;
    float coefficients[MAXIMUM_RANK];
    for (int64_t position = begin; position < end; position++)
        for (int64_t block = 0; block < map->blocks; block++) {
            int64_t row = position / map->inner % map->rows, place = position * map->blocks + block;
            NAME(coefficients)(noise, map->group, row, block, map->blocks, map->inputs,
                               NAME(at)(map->x, place * map->inputs, half), 0, half, coefficients);
            int64_t factor = NAME(factor)(noise, map->group, row, map->blocks * map->outputs);
            for (int64_t u = 0; u < map->outputs; u += LANES) {
                int64_t count = map->outputs - u < LANES ? map->outputs - u : LANES;
                Floats y = NAME(load)(map->y, place * map->outputs + u, count, half);
                y = NAME(noisy)(y, noise, coefficients, factor + block * map->outputs + u, count, half);
                NAME(store)(map->y, place * map->outputs + u, count, half, y);
            }
        }
}

#define BOTH(name, rows)                                                                        \
    static void NAME(name##_float32)(const void *arguments, int64_t begin, int64_t end) {       \
        NAME(rows)(arguments, begin, end, 0);                                                   \
    }                                                                                           \
    static void NAME(name##_bfloat16)(const void *arguments, int64_t begin, int64_t end) {      \
        NAME(rows)(arguments, begin, end, 1);                                                   \
    }

BOTH(lstm, lstm_rows)
BOTH(gru, gru_rows)
BOTH(scores, score_rows)
BOTH(add_rank_one, rank_one_rows)
#undef BOTH
#endif
