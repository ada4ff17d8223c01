// What Python and the kernels agree on: a step's data, matrices, and the table of calls. Mirrored in program.py.
#pragma once
#include <cstdint>

namespace lathe {

constexpr int ABI_VERSION = 4;
constexpr int PAGE = 16;  // tokens of a page of the key-value cache
constexpr int LOGITS_BLOCK = 4096;  // logits that are summed by themselves, whoever does it

enum Kind : int32_t { F32 = 0, BF16 = 1, FP8 = 2, Q8_0 = 3, Q4_0 = 4, Q4_1 = 5 };

// A matrix [rows, columns], or `expert_bytes` apart, one for each expert. Packed kinds lie in tiles (see tiles.h),
// the others row by row. FP8 has one scale for 128 x 128 values.
struct Matrix {
    Kind kind;
    int32_t rows, columns, reserved;
    const uint8_t* data;
    int64_t expert_bytes;
    const float* scales;
    int64_t expert_scales;
    const float* bias;  // [rows], or null
};

// One sequence's share of a step: its newest `num_queries` tokens stand in the packed axis from `start` on;
// `num_keys` of its tokens, these included, stand in the cache, in pages[first_page ...].
struct Span {
    int32_t start, num_queries, num_keys, first_page;
};

// T tokens of all sequences, one after another; R of them want logits.
struct Step {
    int32_t num_tokens, num_rows, num_spans, reserved;
    const int32_t* token_ids;  // [T]
    const int32_t* positions;  // [T], within each sequence
    const int32_t* slots;      // [T], where each token's keys and values go in the cache
    const int32_t* rows;       // [R], which tokens want logits
    const Span* spans;
    const int32_t* pages;
    float* logits;             // [R, vocabulary]
};

// How a token is drawn from the logits' row `row`. `seen` (or null, without penalties) and `counts` have a number for
// each token.
struct Draw {
    float temperature, top_p, min_p, repetition, presence, frequency;
    int32_t top_k, row;
    double uniform;  // in [0, 1)
    const uint8_t* seen;
    const float* counts;
};

// The token that was drawn, or -1 where it takes more candidates than are looked for here; its log-probability; and the
// logarithm of the sum of e^logit of its row.
struct Drawn {
    int32_t token_id;
    float logprob, normalizer;
};

enum Code : int32_t {
    EMBED = 0,
    ROPE_TABLE = 1,
    NORM = 2,
    LINEAR = 3,
    SWIGLU = 4,
    ATTEND = 5,
    ROUTE = 6,
    EXPERTS = 7,
    GATHER = 8,
    ADD = 9,
    QUANTIZE = 10,
};

// One call. `waits`: what it reads or writes was touched by calls since the last wait, so all threads meet first.
// What a[] and f[] hold depends on the code: see ops.h.
struct Op {
    Code code;
    int32_t waits;
    int64_t a[18];
    float f[4];
};

}  // namespace lathe
