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

// The logarithms of the sums of e^logit of some rows, added up in blocks, which the threads share.
class Normalizers {
   public:
    Normalizers(int num_rows, int vocab) : vocab(vocab), num_blocks((vocab + BLOCK - 1) / BLOCK) {
        tops.resize((size_t)num_rows * num_blocks), sums.resize(tops.size());
    }

    // `row_of(i)` is where the i-th row begins.
    template <class RowOf>
    void add_up(RowOf row_of, lathe::Worker& worker) {
        for (int piece; (piece = worker.next((int)tops.size())) >= 0;) {
            int begin = piece % num_blocks * BLOCK;
            chosen->sum_block(
                row_of(piece / num_blocks) + begin, std::min(BLOCK, vocab - begin), tops[piece], sums[piece]);
        }
    }

    float of(int row) const {
        const float *top = &tops[(size_t)row * num_blocks], *sum = &sums[(size_t)row * num_blocks];
        float most = *std::max_element(top, top + num_blocks);
        double total = 0;
        for (int block = 0; block < num_blocks; block++) total += sum[block] * std::exp((double)top[block] - most);
        return (float)(most + std::log(total));
    }

   private:
    static constexpr int BLOCK = lathe::LOGITS_BLOCK;
    int vocab, num_blocks;
    std::vector<float> tops, sums;
};

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
    Normalizers normalizers(1, vocab);
    lathe::run_together(threads, 1, [&](lathe::Worker& worker) {
        worker.begin(0);
        normalizers.add_up([=](int) { return logits; }, worker);
    });
    return normalizers.of(0);
}

void lathe_draw(const float* logits, int vocab, const lathe::Draw* draws, int num_draws, lathe::Drawn* drawn) {
    auto row_of = [=](int i) { return logits + (int64_t)draws[i].row * vocab; };
    Normalizers normalizers(num_draws, vocab);
    lathe::run_together(threads, 1, [&](lathe::Worker& worker) {
        worker.begin(0);
        for (int i; (i = worker.next(num_draws, 1)) >= 0;)
            drawn[i].token_id = chosen->draw_token(row_of(i), vocab, draws[i], worker);
        normalizers.add_up(row_of, worker);
    });
    for (int i = 0; i < num_draws; i++) {
        drawn[i].normalizer = normalizers.of(i);
        drawn[i].logprob = row_of(i)[std::max(drawn[i].token_id, 0)] - drawn[i].normalizer;
    }
}

void lathe_run(const lathe::Op* ops, int num_ops, const lathe::Step* step) {
    lathe::run_together(threads, num_ops, [=](lathe::Worker& worker) {
        chosen->run_calls(ops, num_ops, *step, worker);
    });
}

void lathe_pack(int kind, const uint8_t* blocks, int rows, int columns, uint8_t* tiles) {
    lathe::run_together(threads, 1, [=](lathe::Worker& worker) {
        lathe::pack((lathe::Kind)kind, blocks, rows, columns, tiles, worker);
    });
}
