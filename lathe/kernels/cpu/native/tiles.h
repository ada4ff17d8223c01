// Quantized weights times quantized activations.
//
// A tile is 16 rows x 32 columns of a matrix in GGUF's Q4_0, Q4_1 or Q8_0: its scales (and for Q4_1 its minima), then
// the values of 2 x 8 rows, 4 columns at a time, so that a vector's eight 32-bit lanes belong to eight rows and no
// sum is ever taken across lanes. packed.py has the layout in words and in PyTorch.
//
// Within a tile sums are whole numbers, so their order is free; tiles are added up in fp32 in the order of columns.
// So a row's result has the same bits however many tokens are computed with it.
#pragma once
#include "interface.h"

#if defined(__AVX2__)
#include "multiply_x86.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "multiply_neon.h"
#else
#include "multiply_plain.h"
#endif

namespace lathe::LATHE_ISA {

constexpr int TILE_ROWS = 16, TILE_COLUMNS = 32;

constexpr int tile_bytes(int kind) { return kind == Q8_0 ? 544 : kind == Q4_1 ? 320 : 288; }

template <int KIND>
struct ActivationOf { using type = Narrow; };
template <>
struct ActivationOf<Q8_0> { using type = Wide; };
template <int KIND>
using Activation = typename ActivationOf<KIND>::type;

// The largest size of 32 numbers. As whole numbers, floats without their sign keep their order and NaN comes last: it
// is not lost, but makes the scale NaN.
LATHE_INLINE float largest(const float* x) {
    int32_t most = 0;
    for (int i = 0; i < 32; i++) {
        int32_t bits = load_as<int32_t>(x + i) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return load_as<float>(&most);
}

constexpr float SMALLEST = 1e-30f;  // a group below it is all zeros: the reciprocal of less may be infinite

static void quantize(const float* x, int columns, Narrow* out) {
    for (int first = 0; first < columns; first += 32, out++) {
        float most = largest(x + first);
        int sums[2] = {};
        round_into(x + first, most > SMALLEST ? 127 / most : 0, out, sums);
        out->scale = most / 127;
        out->bias[0] = (int16_t)(-8 * sums[0]), out->bias[1] = (int16_t)(-8 * sums[1]);
        out->sum = out->scale * (float)(sums[0] + sums[1]);
        out->padding = 0;
    }
}

static void quantize(const float* x, int columns, Wide* out) {
    for (int first = 0; first < columns; first += 32, out++) {
        float most = largest(x + first);
        round_into(x + first, most > SMALLEST ? 32767 / most : 0, out);
        out->scale = most / 32767;
        out->padding = 0;
    }
}

// 16 rows times C tokens: out[c][0..15].
template <int KIND, int C>
static void multiply_rows(const uint8_t* tiles, int num_tiles, const Activation<KIND>* const* tokens, float (*out)[16]) {
    constexpr int AHEAD = 2048;  // bytes; found by trying
    const Activation<KIND>* x[C];
    F8 acc[C][2];
    for (int c = 0; c < C; c++) x[c] = tokens[c], acc[c][0] = acc[c][1] = zero();
    for (int t = 0; t < num_tiles; t++, tiles += tile_bytes(KIND)) {
        for (int line = 0; line < tile_bytes(KIND); line += 64) __builtin_prefetch(tiles + AHEAD + line);
        F8 sums[C][2];
        multiply<KIND == Q4_0>(tiles + (KIND == Q4_1 ? 64 : 32), x, sums);
        F8 scale0 = load_f16(tiles), scale1 = load_f16(tiles + 16);
        for (int c = 0; c < C; c++) {
            F8 scale = all(x[c]->scale);
            acc[c][0] = fma(sums[c][0], scale0 * scale, acc[c][0]);
            acc[c][1] = fma(sums[c][1], scale1 * scale, acc[c][1]);
        }
        if constexpr (KIND == Q4_1) {
            F8 least0 = load_f16(tiles + 32), least1 = load_f16(tiles + 48);
            for (int c = 0; c < C; c++) {
                F8 sum = all(x[c]->sum);
                acc[c][0] = fma(least0, sum, acc[c][0]), acc[c][1] = fma(least1, sum, acc[c][1]);
            }
        }
        for (int c = 0; c < C; c++) x[c]++;
    }
    for (int c = 0; c < C; c++) store(out[c], acc[c][0]), store(out[c] + 8, acc[c][1]);
}

// Any number of tokens, `put(token, 16 sums)` for each.
template <int KIND, class Put>
LATHE_INLINE void multiply_tile_row(
    const uint8_t* tiles, int num_tiles, const Activation<KIND>* const* tokens, int count, Put put) {
    alignas(32) float out[4][16];
    int first = 0;
    for (; first + 4 <= count; first += 4) {
        multiply_rows<KIND, 4>(tiles, num_tiles, tokens + first, out);
        for (int c = 0; c < 4; c++) put(first + c, out[c]);
    }
    int rest = count - first;
    if (rest == 3) multiply_rows<KIND, 3>(tiles, num_tiles, tokens + first, out);
    if (rest == 2) multiply_rows<KIND, 2>(tiles, num_tiles, tokens + first, out);
    if (rest == 1) multiply_rows<KIND, 1>(tiles, num_tiles, tokens + first, out);
    for (int c = 0; c < rest; c++) put(first + c, out[c]);
}

// One row of a packed matrix, in fp32: an embedding.
static void unpack_row(const Matrix& matrix, int row, float* out) {
    int num_tiles = matrix.columns / TILE_COLUMNS, bytes = tile_bytes(matrix.kind), r = row % 16;
    const uint8_t* tile = matrix.data + (int64_t)(row / 16) * num_tiles * bytes;
    for (int t = 0; t < num_tiles; t++, tile += bytes, out += TILE_COLUMNS) {
        float scales[8], least[8] = {};
        store(scales, load_f16(tile + 16 * (r / 8)));
        if (matrix.kind == Q4_1) store(least, load_f16(tile + 32 + 16 * (r / 8)));
        float scale = scales[r % 8];
        const uint8_t* values = tile + (matrix.kind == Q4_1 ? 64 : 32) + 4 * r;
        if (matrix.kind == Q8_0) {
            for (int k = 0; k < 32; k++) out[k] = scale * (float)(int8_t)values[64 * (k / 4) + k % 4];
            continue;
        }
        int bias = matrix.kind == Q4_0 ? 8 : 0;
        for (int k = 0; k < 32; k++) {
            uint8_t both = values[64 * (k / 8) + k % 4];
            int q = (k & 4 ? both >> 4 : both & 15) - bias;
            out[k] = scale * (float)q + least[r % 8];
        }
    }
}

}  // namespace lathe::LATHE_ISA
