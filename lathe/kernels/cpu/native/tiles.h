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

// W rows of tiles, `stride` bytes apart, times C tokens: out[w][c][0..15]. Reading at several places at once gets a
// third more out of memory than reading on at one.
template <int KIND, int W, int C>
static void multiply_rows(
    const uint8_t* tiles, int64_t stride, int num_tiles, const Activation<KIND>* const* tokens, float (*out)[4][16]) {
    constexpr int AHEAD = W == 1 ? 2048 : 1024;  // bytes; found by trying
    const Activation<KIND>* x[C];
    F8 acc[W][C][2];
    for (int c = 0; c < C; c++) x[c] = tokens[c];
    for (int w = 0; w < W; w++)
        for (int c = 0; c < C; c++) acc[w][c][0] = acc[w][c][1] = zero();
    for (int t = 0; t < num_tiles; t++, tiles += tile_bytes(KIND)) {
        for (int w = 0; w < W; w++) {
            const uint8_t* tile = tiles + w * stride;
            for (int line = 0; line < tile_bytes(KIND); line += 64) __builtin_prefetch(tile + AHEAD + line);
            F8 sums[C][2];
            multiply<KIND == Q4_0>(tile + (KIND == Q4_1 ? 64 : 32), x, sums);
            F8 scale0 = load_f16(tile), scale1 = load_f16(tile + 16);
            for (int c = 0; c < C; c++) {
                F8 scale = all(x[c]->scale);
                acc[w][c][0] = fma(sums[c][0], scale0 * scale, acc[w][c][0]);
                acc[w][c][1] = fma(sums[c][1], scale1 * scale, acc[w][c][1]);
            }
            if constexpr (KIND == Q4_1) {
                F8 least0 = load_f16(tile + 32), least1 = load_f16(tile + 48);
                for (int c = 0; c < C; c++) {
                    F8 sum = all(x[c]->sum);
                    acc[w][c][0] = fma(least0, sum, acc[w][c][0]), acc[w][c][1] = fma(least1, sum, acc[w][c][1]);
                }
            }
        }
        for (int c = 0; c < C; c++) x[c]++;
    }
    for (int w = 0; w < W; w++)
        for (int c = 0; c < C; c++) store(out[w][c], acc[w][c][0]), store(out[w][c] + 8, acc[w][c][1]);
}

// W rows of tiles times any number of tokens: `put(token, row of tiles, 16 sums)` for each.
template <int KIND, int W, class Put>
LATHE_INLINE void multiply_tile_rows(
    const uint8_t* tiles, int64_t stride, int num_tiles, const Activation<KIND>* const* tokens, int count, Put put) {
    alignas(32) float out[W][4][16];
    auto some = [&](auto c, int first) {
        multiply_rows<KIND, W, c>(tiles, stride, num_tiles, tokens + first, out);
        for (int w = 0; w < W; w++)
            for (int i = 0; i < c; i++) put(first + i, w, out[w][i]);
    };
    int first = 0;
    for (; first + 4 <= count; first += 4) some(Number<4>(), first);
    if (count - first == 3) some(Number<3>(), first);
    if (count - first == 2) some(Number<2>(), first);
    if (count - first == 1) some(Number<1>(), first);
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
