// What one instruction set offers. kernels.cpp defines it once per set, in the namespace of its name.
#pragma once

#include <cstdint>

namespace lathe {

struct Kernels {
    const char* isa;
};

#define LATHE_DECLARE(isa) \
    namespace isa { \
    extern const Kernels kernels; \
    }
LATHE_EACH_ISA(LATHE_DECLARE)
#undef LATHE_DECLARE

}  // namespace lathe
