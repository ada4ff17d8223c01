// Tiles in AVX2 and, where it is compiled for, AVX-512 with VNNI.
#pragma once
#include "activations.h"

namespace lathe::LATHE_ISA {

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

#if defined(__AVX512VNNI__)
LATHE_INLINE __m512i four(const void* from) { return _mm512_set1_epi32(load_as<int32_t>(from)); }
LATHE_INLINE __m512i vector(const uint8_t* from) { return _mm512_loadu_si512(from); }

// A lane for each of the tile's 16 rows. (Without a mask GCC 12 warns of the one that its own header leaves out.)
LATHE_INLINE void to_floats(__m512i rows, F8 (&sums)[2]) {
    sums[0].v = _mm256_cvtepi32_ps(_mm512_maskz_extracti64x4_epi64(0xff, rows, 0));
    sums[1].v = _mm256_cvtepi32_ps(_mm512_maskz_extracti64x4_epi64(0xff, rows, 1));
}

template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Narrow* const (&x)[C], F8 (&sums)[C][2]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i acc[C];
    for (int c = 0; c < C; c++) acc[c] = _mm512_set1_epi32(BIASED ? x[c]->bias[0] + x[c]->bias[1] : 0);
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
        __m512i both = vector(values + 64 * s);
        __m512i low = _mm512_and_si512(both, nibble), high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        for (int c = 0; c < C; c++) {
            acc[c] = _mm512_dpbusd_epi32(acc[c], low, four(x[c]->q + 8 * s));
            acc[c] = _mm512_dpbusd_epi32(acc[c], high, four(x[c]->q + 8 * s + 4));
        }
    }
    for (int c = 0; c < C; c++) to_floats(acc[c], sums[c]);
}

template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Wide* const (&x)[C], F8 (&sums)[C][2]) {
    __m512i acc[C];
    for (int c = 0; c < C; c++) acc[c] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int s = 0; s < 8; s++) {
        __m512i bytes = vector(values + 64 * s);
        __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), odd = _mm512_srai_epi16(bytes, 8);
        for (int c = 0; c < C; c++) {
            acc[c] = _mm512_dpwssd_epi32(acc[c], even, four(x[c]->q + 4 * s));
            acc[c] = _mm512_dpwssd_epi32(acc[c], odd, four(x[c]->q + 4 * s + 2));
        }
    }
    for (int c = 0; c < C; c++) to_floats(acc[c], sums[c]);
}

#else

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

#endif

}  // namespace lathe::LATHE_ISA
