/* What Python fills in (arguments.py holds the same structures). Letters: d = units a head. */
#include <stdint.h>
#include <string.h>

#define MAXIMUM_RANK 64

/* Noise s ε / √rank Σ_i a_i (b_i·x + c_i) of the members side by side. Row r belongs to member
 * r / group % members and has the sign r / (group · members). */
typedef struct {
    int64_t rank, members;
    const float *scale;             /* [signs]: s ε / √rank */
    const void *rows[MAXIMUM_RANK];    /* a_i [members, blocks · outputs] */
    const void *columns[MAXIMUM_RANK]; /* b_i [members, blocks · inputs], or none: the weight is frozen */
    const void *offsets[MAXIMUM_RANK]; /* c_i [members, blocks], or none */
} Noise;

/* One step of a cell, [rows, heads · d] unless it says otherwise. */
typedef struct {
    int64_t is_bfloat16, rows, heads, size;
    const void *product; /* R h, [rows, heads, gates · d] in these strides */
    int64_t product_row, product_head;
    const void *drive; /* [rows, heads · gates · d], rows `drive_row` apart */
    int64_t drive_row;
    const void *bias;   /* [heads · gates · d], or none */
    const void *hidden; /* what R was multiplied with */
    const float *state; /* c of an LSTM, h of a GRU */
    void *next_hidden;  /* or none: the next state serves */
    float *next_state;
    const Noise *noise; /* or none */
    const float *carried; /* [rows, rank]: to add to b_i·h, or none */
    int64_t group;
    int64_t output_last; /* of an LSTM: its gates lie as (i, f, u, o), not (i, f, o, u) */
} Step;

/* y += noise(x) over `positions`, row by row: y [positions, blocks · outputs], x [positions, blocks · inputs]. */
typedef struct {
    int64_t is_bfloat16, positions, inner, rows, blocks, outputs, inputs;
    const void *x;
    void *y; /* of `scores`: float32 [positions, rank] */
    const Noise *noise;
    int64_t group;
} Affine;

/* An LSTM over a chunk of time: x [time, rows, inputs] in these strides, the rest contiguous. */
typedef struct {
    int64_t is_bfloat16, time, rows, heads, size, inputs;
    const void *x;
    int64_t x_step, x_row;
    const void *weight_input, *weight_state, *bias; /* [heads · 4 · d, inputs], [heads, 4 · d, d], [heads · 4 · d] */
    const void *hidden;
    const float *cell;
    void *outputs; /* [time, rows, heads · d] */
    float *next_cell;
    const Noise *input_noise, *state_noise; /* or none; the scores of both add up */
    int64_t group;
    void *packed, *factors, *scratch, *coefficients; /* of `zorn_rollout_bytes`, from a multiple of 64 on */
} Rollout;

static inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

#define UNITS 16              /* of a panel: 4 gates of 16 units */
#define GATES (4 * UNITS * 4) /* bytes of one row's gates in a panel, float32 */
#define TILE (UNITS * 64)     /* bytes of 16 words of 16 units or rows */
#define FLOAT_ROWS 6
#define AMX_ROWS 32
#define CACHE (1 << 20) /* bytes of weights that stay close to a core from one step to the next */

/* How a rollout lies in memory, in blocks of 64 bytes. */
typedef struct {
    int64_t input, state;       /* blocks of a row's x, and of its h of one head */
    int64_t rows, panels;       /* rows of a tile, panels of a head */
    int64_t rank, lanes;        /* of the noise; its members, the first of them twice */
    int64_t panel, factors;     /* bytes of a panel's bias and weights, and of its row factors */
    int64_t block, scratch;     /* bytes of a block of a tile's rows; of its [x | h, head by head | the next h] */
    int64_t coefficients, head_coefficients; /* bytes of a tile's coefficients, and of one head's of them */
} Layout;

static inline Layout layout_of(const Rollout *all, int half) {
    const Noise *noise = all->state_noise;
    int64_t elements = half ? 32 : 16;
    Layout at = {.input = up(all->inputs, elements) / elements, .state = up(all->size, elements) / elements};
    at.rows = half ? AMX_ROWS : FLOAT_ROWS;
    at.panels = up(all->size, UNITS) / UNITS;
    at.rank = noise ? noise->rank : 0;
    at.lanes = noise ? noise->members + UNITS - 1 : 0; /* from any member on, 16 in a row */
    at.panel = GATES + (at.input + at.state) * 4 * TILE;
    at.factors = at.rank * at.lanes * GATES;
    at.block = at.rows * 64;
    at.scratch = (at.input + 2 * all->heads * at.state) * at.block;
    at.head_coefficients = at.rank * at.rows * (half ? 64 : 4);
    at.coefficients = all->heads * at.head_coefficients;
    return at;
}
