// Weights that lie row by row, as in a file or a PyTorch tensor (fp32, bf16, block FP8), times fp32 activations.
//
// A product runs along the columns in eight lanes, each lane in order, and the lanes are added up at the end: the
// same bits however many rows and tokens are computed together.
#pragma once
#include "interface.h"
#include "simd.h"

namespace lathe::LATHE_ISA {

constexpr int FP8_BLOCK = 128;

constexpr int value_bytes(int kind) { return kind == F32 ? 4 : kind == BF16 ? 2 : 1; }

template <int KIND>
LATHE_INLINE F8 load_weights(const uint8_t* from) {
    if constexpr (KIND == F32) return load((const float*)from);
    if constexpr (KIND == BF16) return load_bf16(from);
    if constexpr (KIND == FP8) return load_fp8(from);
}

template <int KIND>
LATHE_INLINE F8 load_some_weights(const uint8_t* from, int count) {
    uint8_t whole[32] = {};
    memcpy(whole, from, count * value_bytes(KIND));
    return load_weights<KIND>(whole);
}

// R rows times C tokens: out[r][c]. `scales` are those of the rows' blocks (FP8).
template <int KIND, int R, int C>
static void multiply_block(
    const uint8_t* rows, int64_t row_bytes, int columns, const float* scales, const float* const* tokens,
    float (&out)[4][4]) {
    const float* x[C];
    F8 acc[R][C];
    for (int c = 0; c < C; c++) x[c] = tokens[c];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = zero();
    auto add = [&](int k, auto get_weights, auto get_x) {
        F8 w[R];
        for (int r = 0; r < R; r++) {
            w[r] = get_weights(rows + r * row_bytes + (int64_t)k * value_bytes(KIND));
            if constexpr (KIND == FP8) w[r] = w[r] * all(scales[k / FP8_BLOCK]);
        }
        for (int c = 0; c < C; c++) {
            F8 x8 = get_x(x[c] + k);
            for (int r = 0; r < R; r++) acc[r][c] = fma(w[r], x8, acc[r][c]);
        }
    };
    constexpr int AHEAD = 512;  // bytes
    int k = 0;
    for (; k + 8 <= columns; k += 8) {
        if (k % (64 / value_bytes(KIND)) == 0)
            for (int r = 0; r < R; r++)
                __builtin_prefetch(rows + r * row_bytes + (int64_t)k * value_bytes(KIND) + AHEAD);
        add(k, [](const uint8_t* from) { return load_weights<KIND>(from); },
            [](const float* from) { return load(from); });
    }
    if (int rest = columns - k)
        add(k, [=](const uint8_t* from) { return load_some_weights<KIND>(from, rest); },
            [=](const float* from) { return load_some(from, rest); });
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) out[r][c] = sum_of(acc[r][c]);
}

// Up to four rows from `row` on, and any number of tokens: `put(token, row, value)` for each.
template <int KIND, class Put>
LATHE_INLINE void multiply_rows_of(
    const Matrix& matrix, const uint8_t* data, const float* scales, int row, int num_rows, const float* const* tokens,
    int count, Put put) {
    int64_t row_bytes = (int64_t)matrix.columns * value_bytes(KIND);
    const uint8_t* rows = data + row * row_bytes;
    if (scales) scales += (int64_t)(row / FP8_BLOCK) * ((matrix.columns + FP8_BLOCK - 1) / FP8_BLOCK);
    float out[4][4];
    auto block = [&](auto r, auto c, int first_row, int first) {
        multiply_block<KIND, r, c>(
            rows + first_row * row_bytes, row_bytes, matrix.columns, scales, tokens + first, out);
        for (int i = 0; i < c; i++)
            for (int j = 0; j < r; j++) put(first + i, row + first_row + j, out[j][i]);
    };
    Number<1> one;
    Number<2> two;
    Number<3> three;
    Number<4> four;
    if (num_rows == 4) {
        int first = 0;
        for (; first + 3 <= count; first += 3) block(four, three, 0, first);
        if (count - first == 2) block(four, two, 0, first);
        if (count - first == 1) block(four, one, 0, first);
        return;
    }
    for (int r = 0; r < num_rows; r++)
        for (int first = 0; first < count; first++) block(one, one, r, first);
}

}  // namespace lathe::LATHE_ISA
