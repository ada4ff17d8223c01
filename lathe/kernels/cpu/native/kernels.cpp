// Compiled once per instruction set, with -DLATHE_ISA=its name.
#include "kernels.h"

#define LATHE_QUOTE(name) #name
#define LATHE_NAME(name) LATHE_QUOTE(name)

namespace lathe::LATHE_ISA {

const Kernels kernels = {LATHE_NAME(LATHE_ISA)};

}  // namespace lathe::LATHE_ISA
