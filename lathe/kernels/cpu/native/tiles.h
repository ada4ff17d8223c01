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
#include "simd.h"

namespace lathe::LATHE_ISA {

constexpr int TILE_ROWS = 16, TILE_COLUMNS = 32;

constexpr int tile_bytes(int kind) { return kind == Q8_0 ? 544 : kind == Q4_1 ? 320 : 288; }

// 32 activations in 8 bits, for 4-bit weights.
struct Narrow {
    int8_t q[32];
    float scale;
    // -8 times the sums of q[0], q[1], q[4], q[5] ... and of q[2], q[3], q[6], q[7] ...: takes off Q4_0's bias of 8
    int16_t bias[2];
    float sum;  // scale * (sum of q), which Q4_1's minima are multiplied by
    int32_t padding;
};

// 32 activations in 16 bits, for 8-bit weights: with 8 bits the activations, not the weights, would decide the error.
// Of every four, the order is 0, 2, 1, 3: as the odd and even bytes of the weights are widened.
struct Wide {
    int16_t q[32];
    float scale;
    int32_t padding;
};
static_assert(sizeof(Narrow) == 48 && sizeof(Wide) == 72, "packed");

template <int KIND>
struct ActivationOf { using type = Narrow; };
template <>
struct ActivationOf<Q8_0> { using type = Wide; };
template <int KIND>
using Activation = typename ActivationOf<KIND>::type;

LATHE_INLINE float largest(const float* x) {
    F8 most = max(max(absolute(load(x)), absolute(load(x + 8))), max(absolute(load(x + 16)), absolute(load(x + 24))));
    return max_of(most);
}

#if defined(__AVX2__)

// Eight whole numbers each, from x * factor.
LATHE_INLINE __m256i whole(const float* x, __m256 factor) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor)); }

LATHE_INLINE int sum_of(__m256i x) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

LATHE_INLINE void round_into(const float* x, float factor, Narrow* out, int (&sums)[2]) {
    __m256 f = _mm256_set1_ps(factor);
    __m256i low = _mm256_packs_epi32(whole(x, f), whole(x + 8, f)), high = _mm256_packs_epi32(whole(x + 16, f), whole(x + 24, f));
    // packing goes by halves of registers; this puts their four-byte pieces back in order
    __m256i q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i*)out->q, q);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    sums[0] = sum_of(_mm256_madd_epi16(pairs, _mm256_set1_epi32(1)));
    sums[1] = sum_of(_mm256_madd_epi16(pairs, _mm256_set1_epi32(1 << 16)));
}

LATHE_INLINE void round_into(const float* x, float factor, Wide* out) {
    __m256 f = _mm256_set1_ps(factor);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    for (int i = 0; i < 32; i += 16) {
        __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole(x + i, f), whole(x + i + 8, f)), 0xD8);
        _mm256_storeu_si256((__m256i*)(out->q + i), _mm256_shuffle_epi8(q, order));
    }
}

#else

LATHE_INLINE void rounded(const float* x, float factor, float (&out)[32]) {
    for (int i = 0; i < 32; i += 8) store(out + i, round_to_even(load(x + i) * all(factor)));
}

LATHE_INLINE void round_into(const float* x, float factor, Narrow* out, int (&sums)[2]) {
    float values[32];
    rounded(x, factor, values);
    for (int i = 0; i < 32; i++) sums[i >> 1 & 1] += out->q[i] = (int8_t)values[i];
}

LATHE_INLINE void round_into(const float* x, float factor, Wide* out) {
    float values[32];
    rounded(x, factor, values);
    for (int i = 0; i < 32; i += 4) {
        out->q[i] = (int16_t)values[i], out->q[i + 1] = (int16_t)values[i + 2];
        out->q[i + 2] = (int16_t)values[i + 1], out->q[i + 3] = (int16_t)values[i + 3];
    }
}

#endif

static void quantize(const float* x, int columns, Narrow* out) {
    for (int first = 0; first < columns; first += 32, out++) {
        float most = largest(x + first);
        int sums[2] = {};
        round_into(x + first, most > 0 ? 127 / most : 0, out, sums);
        out->scale = most / 127;
        out->bias[0] = (int16_t)(-8 * sums[0]), out->bias[1] = (int16_t)(-8 * sums[1]);
        out->sum = out->scale * (float)(sums[0] + sums[1]);
        out->padding = 0;
    }
}

static void quantize(const float* x, int columns, Wide* out) {
    for (int first = 0; first < columns; first += 32, out++) {
        float most = largest(x + first);
        round_into(x + first, most > 0 ? 32767 / most : 0, out);
        out->scale = most / 32767;
        out->padding = 0;
    }
}

// sums[c][h] = the tile's values of rows 8h .. 8h + 7 times the 32 activations of x[c], as whole numbers in fp32.
#if defined(__AVX2__)

// Written out so that the compiler neither reorders the sums, which spills them, nor keeps products apart.
LATHE_INLINE void add_bytes(__m256i& sum, __m256i weights, __m256i x) {
    __m256i products;
    asm volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(weights), "x"(x));
}
LATHE_INLINE void add_words(__m256i& sum, __m256i weights, __m256i x) {
    __m256i products;
    asm volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(weights), "x"(x));
}
LATHE_INLINE __m256i four(const void* from) { return _mm256_set1_epi32(load_as<int32_t>(from)); }
LATHE_INLINE __m256i vector(const uint8_t* from) { return _mm256_load_si256((const __m256i*)from); }

// 4-bit values are unsigned and x is signed: eight products of at most 2 * 15 * 127 fit into 16 bits, and with the
// bias taken off the whole sum does.
template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Narrow* const (&x)[C], F8 (&sums)[C][2]) {
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i acc[C][2];
    for (int c = 0; c < C; c++) acc[c][0] = acc[c][1] = BIASED ? four(x[c]->bias) : _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
        __m256i both0 = vector(values + 64 * s), both1 = vector(values + 64 * s + 32);
        __m256i low0 = _mm256_and_si256(both0, nibble), low1 = _mm256_and_si256(both1, nibble);
        for (int c = 0; c < C; c++) {
            __m256i x4 = four(x[c]->q + 8 * s);
            add_bytes(acc[c][0], low0, x4), add_bytes(acc[c][1], low1, x4);
        }
        __m256i high0 = _mm256_and_si256(_mm256_srli_epi16(both0, 4), nibble);
        __m256i high1 = _mm256_and_si256(_mm256_srli_epi16(both1, 4), nibble);
        for (int c = 0; c < C; c++) {
            __m256i x4 = four(x[c]->q + 8 * s + 4);
            add_bytes(acc[c][0], high0, x4), add_bytes(acc[c][1], high1, x4);
        }
    }
    for (int c = 0; c < C; c++)
        for (int h = 0; h < 2; h++) sums[c][h].v = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[c][h], ones));
}

template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Wide* const (&x)[C], F8 (&sums)[C][2]) {
    __m256i acc[C][2];
    for (int c = 0; c < C; c++) acc[c][0] = acc[c][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int s = 0; s < 8; s++) {
        __m256i bytes0 = vector(values + 64 * s), bytes1 = vector(values + 64 * s + 32);
        __m256i even0 = _mm256_srai_epi16(_mm256_slli_epi16(bytes0, 8), 8), odd0 = _mm256_srai_epi16(bytes0, 8);
        __m256i even1 = _mm256_srai_epi16(_mm256_slli_epi16(bytes1, 8), 8), odd1 = _mm256_srai_epi16(bytes1, 8);
        for (int c = 0; c < C; c++) {
            __m256i x02 = four(x[c]->q + 4 * s), x13 = four(x[c]->q + 4 * s + 2);
            add_words(acc[c][0], even0, x02), add_words(acc[c][1], even1, x02);
            add_words(acc[c][0], odd0, x13), add_words(acc[c][1], odd1, x13);
        }
    }
    for (int c = 0; c < C; c++)
        for (int h = 0; h < 2; h++) sums[c][h].v = _mm256_cvtepi32_ps(acc[c][h]);
}

#else

template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Narrow* const (&x)[C], F8 (&sums)[C][2]) {
    for (int c = 0; c < C; c++)
        for (int row = 0; row < 16; row++) {
            int sum = BIASED ? x[c]->bias[0] + x[c]->bias[1] : 0;
            for (int s = 0; s < 4; s++)
                for (int b = 0; b < 4; b++) {
                    uint8_t both = values[64 * s + 4 * row + b];
                    sum += (both & 15) * x[c]->q[8 * s + b] + (both >> 4) * x[c]->q[8 * s + 4 + b];
                }
            float wide = (float)sum;
            memcpy((char*)&sums[c][row / 8] + 4 * (row % 8), &wide, 4);
        }
}

template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Wide* const (&x)[C], F8 (&sums)[C][2]) {
    static constexpr int place[4] = {0, 2, 1, 3};
    for (int c = 0; c < C; c++)
        for (int row = 0; row < 16; row++) {
            int sum = 0;
            for (int s = 0; s < 8; s++)
                for (int b = 0; b < 4; b++)
                    sum += (int8_t)values[64 * s + 4 * row + b] * x[c]->q[4 * s + place[b]];
            float wide = (float)sum;
            memcpy((char*)&sums[c][row / 8] + 4 * (row % 8), &wide, 4);
        }
}

#endif

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
