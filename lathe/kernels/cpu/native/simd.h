// Eight floats at a time, for whichever instruction set this file is compiled. A sum runs in the same order in all
// of them; only `plain` rounds between a product and its addition.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define LATHE_INLINE static inline __attribute__((always_inline))

namespace lathe::LATHE_ISA {

template <class T>
LATHE_INLINE T load_as(const void* from) {
    T value;
    memcpy(&value, from, sizeof(T));
    return value;
}

#if defined(__AVX2__)

struct F8 { __m256 v; };

LATHE_INLINE F8 load(const float* from) { return {_mm256_loadu_ps(from)}; }
LATHE_INLINE void store(float* to, F8 x) { _mm256_storeu_ps(to, x.v); }
LATHE_INLINE F8 all(float x) { return {_mm256_set1_ps(x)}; }
LATHE_INLINE F8 operator+(F8 x, F8 y) { return {_mm256_add_ps(x.v, y.v)}; }
LATHE_INLINE F8 operator-(F8 x, F8 y) { return {_mm256_sub_ps(x.v, y.v)}; }
LATHE_INLINE F8 operator*(F8 x, F8 y) { return {_mm256_mul_ps(x.v, y.v)}; }
LATHE_INLINE F8 operator/(F8 x, F8 y) { return {_mm256_div_ps(x.v, y.v)}; }
LATHE_INLINE F8 fma(F8 x, F8 y, F8 sum) { return {_mm256_fmadd_ps(x.v, y.v, sum.v)}; }
LATHE_INLINE F8 max(F8 x, F8 y) { return {_mm256_max_ps(x.v, y.v)}; }
LATHE_INLINE F8 min(F8 x, F8 y) { return {_mm256_min_ps(x.v, y.v)}; }
LATHE_INLINE F8 round_to_even(F8 x) {
    return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for whole numbers n in [-126, 127]
LATHE_INLINE F8 power_of_two(F8 n) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
LATHE_INLINE F8 load_bf16(const uint8_t* from) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
LATHE_INLINE F8 load_f16(const uint8_t* from) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from))}; }
LATHE_INLINE void store_f16(uint8_t* to, F8 x) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
// e4m3's bits are those of a half number whose exponent is 8 too small. (Its one NaN reads as 480.)
LATHE_INLINE F8 load_fp8(const uint8_t* from) {
    __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)from)), 7);
    __m128i half = _mm_and_si128(wide, _mm_set1_epi16((short)0xBF80));
    return {_mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f))};
}

#elif defined(__ARM_NEON)

struct F8 { float32x4_t a, b; };

LATHE_INLINE F8 load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
LATHE_INLINE void store(float* to, F8 x) { vst1q_f32(to, x.a), vst1q_f32(to + 4, x.b); }
LATHE_INLINE F8 all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
LATHE_INLINE F8 operator+(F8 x, F8 y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
LATHE_INLINE F8 operator-(F8 x, F8 y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
LATHE_INLINE F8 operator*(F8 x, F8 y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
LATHE_INLINE F8 operator/(F8 x, F8 y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
LATHE_INLINE F8 fma(F8 x, F8 y, F8 sum) { return {vfmaq_f32(sum.a, x.a, y.a), vfmaq_f32(sum.b, x.b, y.b)}; }
LATHE_INLINE F8 max(F8 x, F8 y) { return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b)}; }
LATHE_INLINE F8 min(F8 x, F8 y) { return {vminq_f32(x.a, y.a), vminq_f32(x.b, y.b)}; }
LATHE_INLINE F8 round_to_even(F8 x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b)}; }
LATHE_INLINE float32x4_t power_of_two(float32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
LATHE_INLINE F8 power_of_two(F8 n) { return {power_of_two(n.a), power_of_two(n.b)}; }
LATHE_INLINE F8 load_bf16(const uint8_t* from) {
    uint16x8_t bits = vreinterpretq_u16_u8(vld1q_u8(from));
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16))};
}
LATHE_INLINE F8 from_f16(uint16x8_t bits) {
    float16x8_t half = vreinterpretq_f16_u16(bits);
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_f32_f16(vget_high_f16(half))};
}
LATHE_INLINE F8 load_f16(const uint8_t* from) { return from_f16(vreinterpretq_u16_u8(vld1q_u8(from))); }
LATHE_INLINE void store_f16(uint8_t* to, F8 x) {
    vst1q_u8(to, vreinterpretq_u8_f16(vcombine_f16(vcvt_f16_f32(x.a), vcvt_f16_f32(x.b))));
}
LATHE_INLINE F8 load_fp8(const uint8_t* from) {
    int16x8_t wide = vshlq_n_s16(vmovl_s8(vreinterpret_s8_u8(vld1_u8(from))), 7);
    return from_f16(vandq_u16(vreinterpretq_u16_s16(wide), vdupq_n_u16(0xBF80))) * all(256.0f);
}

#else

struct F8 { float v[8]; };

#define LATHE_EACH for (int i = 0; i < 8; i++)
LATHE_INLINE F8 load(const float* from) { F8 x; memcpy(x.v, from, 32); return x; }
LATHE_INLINE void store(float* to, F8 x) { memcpy(to, x.v, 32); }
LATHE_INLINE F8 all(float x) { F8 z; LATHE_EACH z.v[i] = x; return z; }
LATHE_INLINE F8 operator+(F8 x, F8 y) { LATHE_EACH x.v[i] += y.v[i]; return x; }
LATHE_INLINE F8 operator-(F8 x, F8 y) { LATHE_EACH x.v[i] -= y.v[i]; return x; }
LATHE_INLINE F8 operator*(F8 x, F8 y) { LATHE_EACH x.v[i] *= y.v[i]; return x; }
LATHE_INLINE F8 operator/(F8 x, F8 y) { LATHE_EACH x.v[i] /= y.v[i]; return x; }
LATHE_INLINE F8 fma(F8 x, F8 y, F8 sum) { return x * y + sum; }
LATHE_INLINE F8 max(F8 x, F8 y) { LATHE_EACH x.v[i] = x.v[i] > y.v[i] ? x.v[i] : y.v[i]; return x; }
LATHE_INLINE F8 min(F8 x, F8 y) { LATHE_EACH x.v[i] = x.v[i] < y.v[i] ? x.v[i] : y.v[i]; return x; }
LATHE_INLINE F8 round_to_even(F8 x) { LATHE_EACH x.v[i] = std::nearbyint(x.v[i]); return x; }
LATHE_INLINE F8 power_of_two(F8 n) { LATHE_EACH n.v[i] = std::ldexp(1.0f, (int)n.v[i]); return n; }
LATHE_INLINE float from_f16(uint16_t bits) {
    uint32_t magnitude = bits & 0x7fff, sign = (uint32_t)(bits & 0x8000) << 16;
    uint32_t wide = magnitude << 13;  // exponent 112 too small
    float value = load_as<float>(&wide) * 0x1p112f;
    if (magnitude >= 0x7c00) wide |= 0x7f800000, value = load_as<float>(&wide);
    uint32_t out = load_as<uint32_t>(&value) | sign;
    return load_as<float>(&out);
}
LATHE_INLINE F8 load_f16(const uint8_t* from) {
    F8 x; LATHE_EACH x.v[i] = from_f16(load_as<uint16_t>(from + 2 * i)); return x;
}
// Rounded to the nearest, ties to even; numbers that are too large become infinite.
LATHE_INLINE uint16_t to_f16(float x) {
    uint32_t sign = load_as<uint32_t>(&x) >> 16 & 0x8000;
    x = std::fabs(x);
    if (!(x < 65520)) return (uint16_t)(sign | (x == x ? 0x7c00 : 0x7e00));
    if (x < 0x1p-14f) return (uint16_t)(sign | (uint32_t)std::nearbyint(x * 0x1p24f));
    uint32_t bits = load_as<uint32_t>(&x);
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | ((bits >> 13) - (112 << 10)));
}
LATHE_INLINE void store_f16(uint8_t* to, F8 x) {
    uint16_t half[8];
    LATHE_EACH half[i] = to_f16(x.v[i]);
    memcpy(to, half, 16);
}
LATHE_INLINE F8 load_bf16(const uint8_t* from) {
    F8 x;
    LATHE_EACH { uint32_t wide = (uint32_t)load_as<uint16_t>(from + 2 * i) << 16; x.v[i] = load_as<float>(&wide); }
    return x;
}
LATHE_INLINE F8 load_fp8(const uint8_t* from) {
    F8 x;
    LATHE_EACH {
        uint16_t half = (uint16_t)((from[i] & 0x80) << 8 | (from[i] & 0x7f) << 7);
        x.v[i] = from_f16(half) * 256.0f;
    }
    return x;
}
#undef LATHE_EACH

#endif

// A number that a generic lambda gets as a constant.
template <int N>
struct Number {
    constexpr operator int() const { return N; }
};

LATHE_INLINE int least(int x, int y) { return x < y ? x : y; }
LATHE_INLINE int most(int x, int y) { return x > y ? x : y; }

LATHE_INLINE F8 zero() { return all(0.0f); }

// The lanes added up: ((0+4)+(2+6)) + ((1+5)+(3+7))
LATHE_INLINE float sum_of(F8 x) {
    float v[8];
    store(v, x);
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
LATHE_INLINE float max_of(F8 x) {
    float v[8];
    store(v, x);
    float most = v[0];
    for (int i = 1; i < 8; i++) most = v[i] > most ? v[i] : most;
    return most;
}
// Whether none of the next eight numbers is larger.
LATHE_INLINE bool none_above(const float* from, float limit) {
#if defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(from), _mm256_set1_ps(limit), _CMP_GT_OQ)) == 0;
#else
    return max_of(load(from)) <= limit;
#endif
}
// The first `count` < 8 numbers, then zeros.
LATHE_INLINE F8 load_some(const float* from, int count) {
    float v[8] = {};
    memcpy(v, from, 4 * count);
    return load(v);
}
LATHE_INLINE void store_some(float* to, F8 x, int count) {
    float v[8];
    store(v, x);
    memcpy(to, v, 4 * count);
}

// e^x within 2 units in the last place; below -87 it is e^-87, and above 88 e^88. Of NaN it is NaN.
// 2^n * e^r with r in [-ln 2 / 2, ln 2 / 2] and a Taylor polynomial of e^r.
LATHE_INLINE F8 exp(F8 x) {
    x = min(all(88.0f), max(all(-87.0f), x));  // of x86's, the second is what comes out where one is NaN
    F8 n = round_to_even(x * all(1.44269504f));
    F8 r = fma(n, all(-0.693359375f), x);
    r = fma(n, all(2.12194440e-4f), r);
    F8 p = fma(all(1.0f / 5040), r, all(1.0f / 720));
    p = fma(p, r, all(1.0f / 120));
    p = fma(p, r, all(1.0f / 24));
    p = fma(p, r, all(1.0f / 6));
    p = fma(p, r, all(0.5f));
    p = fma(p, r, all(1.0f));
    p = fma(p, r, all(1.0f));
    return p * power_of_two(n);
}
LATHE_INLINE F8 silu(F8 x) { return x / (all(1.0f) + exp(zero() - x)); }

}  // namespace lathe::LATHE_ISA
