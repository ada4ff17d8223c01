// Tiles in NEON with dot products (ARMv8.2): four rows to a register, four columns to a lane.
#pragma once
#include "activations.h"

namespace lathe::LATHE_ISA {

// Eight whole numbers from x * factor.
LATHE_INLINE int16x8_t whole(const float* x, float factor) {
    int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x), factor));
    int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4), factor));
    return vcombine_s16(vmovn_s32(low), vmovn_s32(high));
}

LATHE_INLINE void round_into(const float* x, float factor, Narrow* out, int (&sums)[2]) {
    int16x8_t pairs = vdupq_n_s16(0);
    for (int i = 0; i < 32; i += 16) {
        int8x16_t q = vcombine_s8(vmovn_s16(whole(x + i, factor)), vmovn_s16(whole(x + i + 8, factor)));
        vst1q_s8(out->q + i, q);
        pairs = vpadalq_s8(pairs, q);
    }
    sums[0] = vaddv_s16(vget_low_s16(vuzp1q_s16(pairs, pairs)));
    sums[1] = vaddv_s16(vget_low_s16(vuzp2q_s16(pairs, pairs)));
}

// There is no dot product of 16 bits, so that q is kept as 32 high bytes, then the 32 low ones less 128:
// q = 256 high + low + 128, all signed.
LATHE_INLINE void round_into(const float* x, float factor, Wide* out) {
    int8_t *high = (int8_t*)out->q, *low = high + 32;
    for (int i = 0; i < 32; i += 16) {
        int16x8_t q0 = whole(x + i, factor), q1 = whole(x + i + 8, factor);
        vst1q_s8(high + i, vcombine_s8(vshrn_n_s16(q0, 8), vshrn_n_s16(q1, 8)));
        vst1q_s8(low + i, veorq_s8(vcombine_s8(vmovn_s16(q0), vmovn_s16(q1)), vdupq_n_s8(-128)));
    }
}

// Written out so that the compiler doesn't reorder the sums, which spills them.
LATHE_INLINE void add_bytes(int32x4_t& sum, int8x16_t weights, int8x16_t x) {
    asm volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(weights), "w"(x));
}
LATHE_INLINE int8x16_t four(const int8_t* from) { return vreinterpretq_s8_s32(vdupq_n_s32(load_as<int32_t>(from))); }

template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Narrow* const (&x)[C], F8 (&sums)[C][2]) {
    int32x4_t acc[C][4];
    for (int c = 0; c < C; c++)
        for (int i = 0; i < 4; i++) acc[c][i] = vdupq_n_s32(BIASED ? x[c]->bias[0] + x[c]->bias[1] : 0);
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
        uint8x16_t both[4];
        int8x16_t w[4];
        for (int i = 0; i < 4; i++) {
            both[i] = vld1q_u8(values + 64 * s + 16 * i);
            w[i] = vreinterpretq_s8_u8(vandq_u8(both[i], vdupq_n_u8(15)));
        }
        for (int c = 0; c < C; c++) {
            int8x16_t x4 = four(x[c]->q + 8 * s);
            for (int i = 0; i < 4; i++) add_bytes(acc[c][i], w[i], x4);
        }
        for (int i = 0; i < 4; i++) w[i] = vreinterpretq_s8_u8(vshrq_n_u8(both[i], 4));
        for (int c = 0; c < C; c++) {
            int8x16_t x4 = four(x[c]->q + 8 * s + 4);
            for (int i = 0; i < 4; i++) add_bytes(acc[c][i], w[i], x4);
        }
    }
    for (int c = 0; c < C; c++)
        for (int h = 0; h < 2; h++) sums[c][h] = {vcvtq_f32_s32(acc[c][2 * h]), vcvtq_f32_s32(acc[c][2 * h + 1])};
}

template <bool BIASED, int C>
LATHE_INLINE void multiply(const uint8_t* values, const Wide* const (&x)[C], F8 (&sums)[C][2]) {
    for (int h = 0; h < 2; h++) {
        asm volatile("" ::: "memory");  // else x's fours are kept for the second half: more than there are registers
        int32x4_t high[C][2], low[C][2], weights[2];
        for (int i = 0; i < 2; i++) {
            weights[i] = vdupq_n_s32(0);
            for (int c = 0; c < C; c++) high[c][i] = low[c][i] = vdupq_n_s32(0);
        }
#pragma GCC unroll 8
        for (int s = 0; s < 8; s++) {
            const int8_t* from = (const int8_t*)values + 64 * s + 32 * h;
            int8x16_t w[] = {vld1q_s8(from), vld1q_s8(from + 16)};
            for (int i = 0; i < 2; i++) add_bytes(weights[i], w[i], vdupq_n_s8(1));
            for (int c = 0; c < C; c++) {
                const int8_t* q = (const int8_t*)x[c]->q + 4 * s;
                int8x16_t x_high = four(q), x_low = four(q + 32);
                for (int i = 0; i < 2; i++) add_bytes(high[c][i], w[i], x_high), add_bytes(low[c][i], w[i], x_low);
            }
        }
        for (int c = 0; c < C; c++) {
            float32x4_t rows[2];
            for (int i = 0; i < 2; i++)  // 256 high + low + 128 for each weight
                rows[i] = vcvtq_f32_s32(vaddq_s32(low[c][i], vshlq_n_s32(vaddq_s32(vshlq_n_s32(high[c][i], 1), weights[i]), 7)));
            sums[c][h] = {rows[0], rows[1]};
        }
    }
}

}  // namespace lathe::LATHE_ISA
