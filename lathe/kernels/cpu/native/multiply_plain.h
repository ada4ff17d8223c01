// Tiles without vectors: what the others must equal.
#pragma once
#include "activations.h"

namespace lathe::LATHE_ISA {

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

}  // namespace lathe::LATHE_ISA
