/* Steps of recurrent cells and rank-one noise, fused: one pass over the gates of each row.
 *
 * The arithmetic is in recurrent_body.h, compiled here once for each instruction set; the best one that the
 * processor has is chosen at the first call. Rows are independent and each is summed in one fixed order, so
 * results do not depend on the number of threads. No header but C's own: neither Python nor torch is needed.
 */
#include "recurrent.h"
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define ALWAYS static inline __attribute__((always_inline))

#define NAME(name) name##_baseline
#include "recurrent_body.h"
#undef NAME

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 14 : defined(__GNUC__))
#define SEVERAL_INSTRUCTION_SETS

#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define BEGIN_TARGET(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_TARGET PRAGMA(GCC pop_options)
#endif

BEGIN_TARGET("avx2,fma")
#define NAME(name) name##_avx2
#include "recurrent_body.h"
#undef NAME
END_TARGET

BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define NAME(name) name##_avx512
#include "recurrent_body.h"
#undef NAME
END_TARGET
#endif

#if defined(SEVERAL_INSTRUCTION_SETS) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define PACKED
#include <sys/syscall.h>
#include <unistd.h>
BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,amx-tile,amx-bf16")
#define NAME(name) name##_packed
#define ARITHMETIC_ONLY
#include "recurrent_body.h"
#include "packed_body.h"
#undef NAME
END_TARGET
#endif

typedef void (*Body)(const void *arguments, int64_t begin, int64_t end);

enum { BASELINE, AVX2, AVX512 };

/* Changes with the structures and functions that Python calls: `INTERFACE` in loading.py. */
int64_t zorn_interface(void) { return 2; }

/* 0, 1 or 2: the widest instruction set that this processor has and this file was compiled for. */
int64_t zorn_instruction_set(void) {
#ifdef SEVERAL_INSTRUCTION_SETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return AVX2;
#endif
    return BASELINE;
}

static int64_t instruction_set = -1;

/* Take a narrower instruction set than the processor's widest, for tests. */
void zorn_limit_instruction_set(int64_t widest) {
    int64_t own = zorn_instruction_set();
    instruction_set = widest < own ? widest : own;
}

#ifdef SEVERAL_INSTRUCTION_SETS
#define CHOOSE(name) \
    (instruction_set == AVX512 ? name##_avx512 : instruction_set == AVX2 ? name##_avx2 : name##_baseline)
#else
#define CHOOSE(name) name##_baseline
#endif

/* Threads: those of the OpenMP runtime that torch has loaded, through its entry point; a second runtime would
 * spin against the first. */
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
static Parallel parallel = 0;

void zorn_use_parallel(Parallel entry) { parallel = entry; }

typedef struct {
    Body body;
    const void *arguments;
    int64_t next, total, piece;
} Job;

static void work(void *data) {
    Job *job = data;
    for (;;) {
        int64_t begin = __atomic_fetch_add(&job->next, job->piece, __ATOMIC_RELAXED);
        if (begin >= job->total) return;
        int64_t end = begin + job->piece < job->total ? begin + job->piece : job->total;
        job->body(job->arguments, begin, end);
    }
}

/* `elements` of each of `total` rows, in so many pieces a thread; a thread is worth some ten thousand. */
static void run(Body body, const void *arguments, int64_t total, int64_t elements, int64_t threads,
                int64_t pieces) {
    if (!parallel || threads < 2 || total * elements < 1 << 15) {
        body(arguments, 0, total);
        return;
    }
    int64_t piece = (total + pieces * threads - 1) / (pieces * threads);
    Job job = {body, arguments, 0, total, piece};
    parallel(work, &job, (unsigned)threads, 0);
}

#define RUN(name, total, elements)                                                               \
    do {                                                                                         \
        if (instruction_set < 0) instruction_set = zorn_instruction_set();                       \
        run(arguments->is_bfloat16 ? CHOOSE(name##_bfloat16) : CHOOSE(name##_float32), arguments, \
            total, elements, threads, 4);                                                        \
    } while (0)

void zorn_lstm(const Step *arguments, int64_t threads) {
    RUN(lstm, arguments->rows, arguments->heads * arguments->size * 4);
}

void zorn_gru(const Step *arguments, int64_t threads) {
    RUN(gru, arguments->rows, arguments->heads * arguments->size * 3);
}

void zorn_scores(const Affine *arguments, int64_t threads) {
    RUN(scores, arguments->positions, arguments->inputs);
}

void zorn_add_rank_one(const Affine *arguments, int64_t threads) {
    RUN(add_rank_one, arguments->positions, arguments->blocks * (arguments->inputs + arguments->outputs));
}

/* Whether `zorn_rollout` runs here in float32 (AVX-512) or bfloat16 (AMX, which Linux gives on request). */
int64_t zorn_has_rollout(int64_t is_bfloat16) {
#ifdef PACKED
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18, AMX = 1 << 22 | 1 << 24, AVX512_BF16 = 1 << 5 };
    unsigned a, b, c, features = 0, more = 0;
    if (zorn_instruction_set() != AVX512) return 0;
    if (!is_bfloat16) return 1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &features) || (features & AMX) != AMX) return 0;
    if (!__get_cpuid_count(7, 1, &more, &b, &c, &features) || !(more & AVX512_BF16)) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    (void)is_bfloat16;
    return 0;
#endif
}

#ifdef PACKED
static int64_t tiles_of(const Rollout *all, const Layout *at) { return up(all->rows, at->rows) / at->rows; }

/* Bytes of the packed weights and row factors, and of the scratch memory and coefficients of all rows. */
void zorn_rollout_bytes(const Rollout *all, int64_t bytes[4]) {
    const Layout at = layout_of(all, all->is_bfloat16 != 0);
    bytes[0] = all->heads * at.panels * at.panel;
    bytes[1] = all->heads * at.panels * at.factors;
    bytes[2] = tiles_of(all, &at) * at.scratch;
    bytes[3] = tiles_of(all, &at) * at.coefficients;
}

/* Pack the weights, and take the cell over the chunk: each thread some of the rows, through all steps. */
void zorn_rollout(const Rollout *all, int64_t threads) {
    int half = all->is_bfloat16 != 0;
    const Layout at = layout_of(all, half);
    int64_t elements = 4 * UNITS * (all->inputs + all->size);
    run(half ? pack_bfloat16 : pack_float32, all, all->heads * at.panels, elements, threads, 4);
    run(half ? rollout_bfloat16 : rollout_float32, all, tiles_of(all, &at), 1 << 20, threads, 1);
}
#endif
