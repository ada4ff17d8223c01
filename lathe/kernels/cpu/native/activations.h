// Activations as whole numbers, 32 to a scale. Each instruction set has in one file (multiply_*.h)
//     round_into(x, factor, out)     out->q = x * factor, rounded to even; for Narrow also two sums of q: see `bias`
//     multiply<BIASED>(values, x, sums)
//         sums[c][h] = a tile's values of rows 8h .. 8h + 7 times the 32 activations of x[c], less 8 if BIASED.
// The sums are whole numbers, and exact, so that all sets have the same.
#pragma once
#include "simd.h"

namespace lathe::LATHE_ISA {

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
// In what order its bits lie is the instruction set's own matter (not in NEON: of every four 0, 2, 1, 3, as the even
// and odd bytes of the weights are widened).
struct Wide {
    int16_t q[32];
    float scale;
    int32_t padding;
};
static_assert(sizeof(Narrow) == 48 && sizeof(Wide) == 72, "packed");

}  // namespace lathe::LATHE_ISA
