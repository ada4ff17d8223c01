// Chooses an instruction set that this processor runs.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "lathe.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace {

const lathe::Kernels* chosen = nullptr;
int threads = 1;

bool runs_here(const char* isa) {
    if (!std::strcmp(isa, "plain")) return true;
#if defined(__x86_64__)
    if (!std::strcmp(isa, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!std::strcmp(isa, "avx512"))
        return runs_here("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#elif defined(__APPLE__)
    if (!std::strcmp(isa, "neon")) return true;  // every Apple processor of this architecture
#elif defined(__aarch64__)
    const unsigned long dotprod = 1ul << 20, half = 1ul << 10;  // HWCAP_ASIMDDP, HWCAP_ASIMDHP
    if (!std::strcmp(isa, "neon")) return (getauxval(AT_HWCAP) & (dotprod | half)) == (dotprod | half);
#endif
    return false;
}

}  // namespace

int lathe_abi_version(void) { return lathe::ABI_VERSION; }

const char* lathe_isa(void) { return chosen ? chosen->isa : nullptr; }

int lathe_init(const char* isa, int num_threads) {
    const lathe::Kernels* all[] = {
#define LATHE_LIST(isa) &lathe::isa::kernels,
        LATHE_EACH_ISA(LATHE_LIST)
#undef LATHE_LIST
    };
    for (const lathe::Kernels* each : all) {
        if (isa && *isa && std::strcmp(isa, each->isa)) continue;
        if (!runs_here(each->isa)) continue;
        chosen = each;
        threads = num_threads < 1 ? 1 : num_threads;
        return 0;
    }
    return -1;
}

float lathe_normalizer(const float* logits, int vocab) {
    int num_blocks = (vocab + lathe::LOGITS_BLOCK - 1) / lathe::LOGITS_BLOCK;
    std::vector<float> tops(num_blocks), sums(num_blocks);
    lathe::run_together(threads, 1, [&](lathe::Worker& worker) {
        worker.begin(0);
        chosen->sum_blocks(logits, vocab, tops.data(), sums.data(), worker);
    });
    float top = *std::max_element(tops.begin(), tops.end());
    double total = 0;
    for (int block = 0; block < num_blocks; block++) total += sums[block] * std::exp((double)tops[block] - top);
    return (float)(top + std::log(total));
}

int lathe_draw(const float* logits, int vocab, const lathe::Draw* draw) {
    thread_local lathe::Team alone;
    thread_local lathe::Worker worker;
    worker.team = &alone;
    return chosen->draw_token(logits, vocab, *draw, worker);
}

void lathe_run(const lathe::Op* ops, int num_ops, const lathe::Step* step) {
    lathe::run_together(threads, num_ops, [=](lathe::Worker& worker) {
        chosen->run_calls(ops, num_ops, *step, worker);
    });
}
