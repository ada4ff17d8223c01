// What one instruction set offers. kernels.cpp defines it once per set, in the namespace of its name.
#pragma once

#include "interface.h"
#include "team.h"

namespace lathe {

struct Kernels {
    const char* isa;
    void (*sum_block)(const float* x, int count, float& top, float& sum);
    int (*draw_token)(const float* logits, int vocab, const Draw& draw, Worker& worker);
    void (*run_calls)(const Op* ops, int num_ops, const Step& step, Worker& worker);
};

#define LATHE_DECLARE(isa) \
    namespace isa { \
    extern const Kernels kernels; \
    }
LATHE_EACH_ISA(LATHE_DECLARE)
#undef LATHE_DECLARE

// A thread's part of lathe_pack (see lathe.h).
void pack(Kind kind, const uint8_t* blocks, int rows, int columns, uint8_t* tiles, Worker& worker);

}  // namespace lathe
