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
    void *packed, *factors, *scratch; /* of `zorn_rollout_bytes` */
    float *coefficients;    /* [rows, heads, rank] */
} Rollout;

static inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/* Words of 4 bytes (a float32, or a pair of bfloat16) that `count` packed inputs take. */
static inline int64_t words_of(int64_t count, int half) { return half ? up(count, 32) / 2 : count; }
