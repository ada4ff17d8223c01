// The calls that a step is made of. Each runs on all threads at once; which numbers a thread computes never changes
// how they are computed. a[] of every call is listed above it; pointers may be null where "or 0" stands.
#pragma once
#include "interface.h"
#include "rows.h"
#include "simd.h"
#include "team.h"
#include "tiles.h"

namespace lathe::LATHE_ISA {

template <class T>
LATHE_INLINE T* at(const Op& op, int place) { return (T*)op.a[place]; }

LATHE_INLINE int count_of(const Step& step, int64_t rows_only) { return rows_only ? step.num_rows : step.num_tokens; }

// A row's quantized forms, where they are wanted, at its place among the rows.
LATHE_INLINE void quantize_row(const float* x, int width, int64_t row, Narrow* narrow, Wide* wide) {
    if (narrow) quantize(x, width, narrow + row * (width / 32));
    if (wide) quantize(x, width, wide + row * (width / 32));
}

static void read_row(const Matrix& matrix, int row, float* out) {
    if (matrix.kind >= Q8_0) return unpack_row(matrix, row, out);
    const uint8_t* from = matrix.data + (int64_t)row * matrix.columns * value_bytes(matrix.kind);
    for (int k = 0; k < matrix.columns; k++) {
        uint32_t bits = matrix.kind == BF16 ? (uint32_t)load_as<uint16_t>(from + 2 * k) << 16 : load_as<uint32_t>(from + 4 * k);
        out[k] = load_as<float>(&bits);
    }
}

// matrix, out [T, columns]
static void embed(const Op& op, const Step& step, Worker& worker) {
    const Matrix& table = *at<Matrix>(op, 0);
    int first, last;
    worker.share(step.num_tokens, first, last);
    for (int t = first; t < last; t++) read_row(table, step.token_ids[t], at<float>(op, 1) + (int64_t)t * table.columns);
}

// frequencies [half], half, cos [T, half], sin [T, half]; f: scale
static void rope_table(const Op& op, const Step& step, Worker& worker) {
    int half = (int)op.a[1], first, last;
    worker.share(step.num_tokens, first, last);
    for (int t = first; t < last; t++)
        for (int i = 0; i < half; i++) {
            float angle = (float)step.positions[t] * at<float>(op, 0)[i];
            at<float>(op, 2)[(int64_t)t * half + i] = std::cos(angle) * op.f[0];
            at<float>(op, 3)[(int64_t)t * half + i] = std::sin(angle) * op.f[0];
        }
}

static void normalize(const float* x, int width, const float* weight, float eps, float* out) {
    F8 squares = zero();
    int k = 0;
    for (; k + 8 <= width; k += 8) squares = fma(load(x + k), load(x + k), squares);
    if (k < width) squares = fma(load_some(x + k, width - k), load_some(x + k, width - k), squares);
    float factor = 1 / std::sqrt(sum_of(squares) / (float)width + eps);
    for (k = 0; k + 8 <= width; k += 8) store(out + k, load(x + k) * all(factor) * load(weight + k));
    for (; k < width; k++) out[k] = x[k] * factor * weight[k];
}

// x [T or R, width], width, weight, out, narrow or 0, wide or 0, of R; f: eps
static void norm(const Op& op, const Step& step, Worker& worker) {
    int width = (int)op.a[1], first, last;
    worker.share(count_of(step, op.a[6]), first, last);
    for (int t = first; t < last; t++) {
        float* out = at<float>(op, 3) + (int64_t)t * width;
        normalize(at<float>(op, 0) + (int64_t)t * width, width, at<float>(op, 2), op.f[0], out);
        quantize_row(out, width, t, at<Narrow>(op, 4), at<Wide>(op, 5));
    }
}

// The chosen rows of x [T, width], width, out, narrow or 0, wide or 0
static void gather(const Op& op, const Step& step, Worker& worker) {
    int width = (int)op.a[1], first, last;
    worker.share(step.num_rows, first, last);
    for (int r = first; r < last; r++) {
        float* out = at<float>(op, 2) + (int64_t)r * width;
        memcpy(out, at<float>(op, 0) + (int64_t)step.rows[r] * width, 4 * width);
        quantize_row(out, width, r, at<Narrow>(op, 3), at<Wide>(op, 4));
    }
}

// x [T, width], width, narrow or 0, wide or 0
static void quantize_rows(const Op& op, const Step& step, Worker& worker) {
    int width = (int)op.a[1], first, last;
    worker.share(step.num_tokens, first, last);
    for (int t = first; t < last; t++)
        quantize_row(at<float>(op, 0) + (int64_t)t * width, width, t, at<Narrow>(op, 2), at<Wide>(op, 3));
}

// x, y, out [T, width], width
static void add(const Op& op, const Step& step, Worker& worker) {
    int width = (int)op.a[3], first, last;
    worker.share(step.num_tokens, first, last);
    for (int64_t i = (int64_t)first * width; i < (int64_t)last * width; i++)
        at<float>(op, 2)[i] = at<float>(op, 0)[i] + at<float>(op, 1)[i];
}

static void swiglu_row(const float* gate, const float* up, int width, float* out) {
    int i = 0;
    for (; i + 8 <= width; i += 8) store(out + i, silu(load(gate + i)) * load(up + i));
    if (int rest = width - i) store_some(out + i, silu(load_some(gate + i, rest)) * load_some(up + i, rest), rest);
}

// gate [T, width], up [T, width], width, out, narrow or 0, wide or 0
static void swiglu(const Op& op, const Step& step, Worker& worker) {
    constexpr int PART = 256;  // a single token's numbers are shared among the threads, too
    int width = (int)op.a[2], parts = (width + PART - 1) / PART, first, last;
    worker.share(step.num_tokens * parts, first, last);
    for (int piece = first; piece < last; piece++) {
        int64_t begin = (int64_t)(piece / parts) * width + piece % parts * PART;
        int many = least(PART, width - piece % parts * PART);
        float* out = at<float>(op, 3) + begin;
        swiglu_row(at<float>(op, 0) + begin, at<float>(op, 1) + begin, many, out);
        if (op.a[4]) quantize(out, many, at<Narrow>(op, 4) + begin / 32);
        if (op.a[5]) quantize(out, many, at<Wide>(op, 5) + begin / 32);
    }
}

// A row of the matrix's activations in the form that its kind takes.
LATHE_INLINE const void* activation(const Matrix& matrix, const float* x, const Narrow* narrow, const Wide* wide, int64_t row) {
    int width = matrix.columns;
    if (matrix.kind < Q8_0) return x + row * width;
    if (matrix.kind == Q8_0) return wide + row * (width / 32);
    return narrow + row * (width / 32);
}

constexpr int TOKENS_AT_ONCE = 96;  // so that their activations stay in the second cache while weights go by

// How a matrix times some tokens is cut into pieces, each of which one thread does.
//
// With few tokens memory decides: a piece is then `streams` rows of tiles, far from one another, and the next piece
// follows each of them. Rows that this leaves over are pieces of their own. With many tokens a piece is `part` rows
// one after the other; so many that the tokens' activations, which go by once for each piece, don't hold it up.
struct Pieces {
    int count, part, streams, groups;
};

static Pieces cut(const Matrix& matrix, int num_tokens, int num_threads) {
    int tile_rows = (matrix.rows + 15) / 16;
    if (matrix.kind >= Q8_0 && num_tokens <= 3) {
        int streams = num_tokens == 1 && tile_rows >= 8 ? 4 : tile_rows >= 4 ? 2 : 1, groups = tile_rows / streams;
        return {groups + tile_rows % streams, 16, streams, groups};
    }
    int part = num_tokens <= 16 ? 32 : most(16, least(matrix.rows / (num_threads * 4) / 16 * 16, 256));
    if (matrix.kind < Q8_0 && matrix.rows < 64 * num_threads) part = most(4, matrix.rows / (num_threads * 4) / 4 * 4);
    return {(matrix.rows + part - 1) / part, part, 1, 0};
}

// Rows [first, last) of a matrix that lies row by row; `put(token, row, how many, values)`.
template <int KIND, class Put>
static void multiply_piece(
    const Matrix& matrix, int expert, const Pieces& pieces, int piece, const void* const* tokens, int count, Put put) {
    const uint8_t* data = matrix.data + expert * matrix.expert_bytes;
    int first = piece * pieces.part, last = least(first + pieces.part, matrix.rows);
    for (int begin = 0; begin < count; begin += TOKENS_AT_ONCE) {
        int many = least(TOKENS_AT_ONCE, count - begin);
        if constexpr (KIND >= Q8_0) {
            int num_tiles = matrix.columns / TILE_COLUMNS;
            int64_t bytes = (int64_t)num_tiles * tile_bytes(KIND);
            // `streams` rows of tiles from tile_row on, `apart` from one another
            auto rows = [&](auto streams, int tile_row, int apart) {
                multiply_tile_rows<KIND, streams>(
                    data + tile_row * bytes, apart * bytes, num_tiles, (const Activation<KIND>* const*)tokens + begin,
                    many, [&](int token, int stream, const float* sums) {
                        int row = 16 * (tile_row + stream * apart);
                        put(begin + token, row, least(16, matrix.rows - row), sums);
                    });
            };
            if (pieces.groups == 0)
                for (int row = first; row < last; row += 16) rows(Number<1>(), row / 16, 0);
            else if (piece >= pieces.groups)
                rows(Number<1>(), pieces.groups * (pieces.streams - 1) + piece, 0);
            else if (pieces.streams == 4) rows(Number<4>(), piece, pieces.groups);
            else if (pieces.streams == 2) rows(Number<2>(), piece, pieces.groups);
            else rows(Number<1>(), piece, 0);
        } else {
            const float* scales = matrix.scales ? matrix.scales + expert * matrix.expert_scales : nullptr;
            for (int row = first; row < last; row += 4)
                multiply_rows_of<KIND>(
                    matrix, data, scales, row, least(4, last - row), (const float* const*)tokens + begin, many,
                    [&](int token, int at_row, float value) { put(begin + token, at_row, 1, &value); });
        }
    }
}

template <class Put>
static void multiply_piece(
    const Matrix& matrix, int expert, const Pieces& pieces, int piece, const void* const* tokens, int count, Put put) {
    switch (matrix.kind) {
        case F32: return multiply_piece<F32>(matrix, expert, pieces, piece, tokens, count, put);
        case BF16: return multiply_piece<BF16>(matrix, expert, pieces, piece, tokens, count, put);
        case FP8: return multiply_piece<FP8>(matrix, expert, pieces, piece, tokens, count, put);
        case Q8_0: return multiply_piece<Q8_0>(matrix, expert, pieces, piece, tokens, count, put);
        case Q4_0: return multiply_piece<Q4_0>(matrix, expert, pieces, piece, tokens, count, put);
        case Q4_1: return multiply_piece<Q4_1>(matrix, expert, pieces, piece, tokens, count, put);
    }
}

// matrix, x or 0, narrow or 0, wide or 0, out [T or R, rows] or 0 (the step's logits), residual or 0, of R
static void linear(const Op& op, const Step& step, Worker& worker) {
    const Matrix& matrix = *at<Matrix>(op, 0);
    int count = count_of(step, op.a[6]), rows = matrix.rows;
    float* out = op.a[4] ? at<float>(op, 4) : step.logits;
    const float* residual = at<float>(op, 5);
    const void** tokens = worker.pointers(count);
    for (int t = 0; t < count; t++)
        tokens[t] = activation(matrix, at<float>(op, 1), at<Narrow>(op, 2), at<Wide>(op, 3), t);
    Pieces pieces = cut(matrix, count, worker.num_threads());
    for (int piece; (piece = worker.next(pieces.count)) >= 0;)
        multiply_piece(
            matrix, 0, pieces, piece, tokens, count, [&](int token, int row, int many, const float* sums) {
                int64_t place = (int64_t)token * rows + row;
                for (int i = 0; i < many; i++) {
                    float value = sums[i];
                    if (matrix.bias) value += matrix.bias[row + i];
                    out[place + i] = residual ? residual[place + i] + value : value;
                }
            });
}

}  // namespace lathe::LATHE_ISA
