// All calls of a step. Compiled once per instruction set, with -DLATHE_ISA=its name.
#include "kernels.h"

#include "attention.h"
#include "experts.h"
#include "ops.h"
#include "sampling.h"

#define LATHE_QUOTE(name) #name
#define LATHE_NAME(name) LATHE_QUOTE(name)

namespace lathe::LATHE_ISA {

static void call(const Op& op, const Step& step, Worker& worker) {
    switch (op.code) {
        case EMBED: return embed(op, step, worker);
        case ROPE_TABLE: return rope_table(op, step, worker);
        case NORM: return norm(op, step, worker);
        case LINEAR: return linear(op, step, worker);
        case SWIGLU: return swiglu(op, step, worker);
        case ATTEND: return op.a[15] ? attend<Half>(op, step, worker) : attend<float>(op, step, worker);
        case ROUTE: return route(op, step, worker);
        case EXPERTS: return experts(op, step, worker);
        case GATHER: return gather(op, step, worker);
        case ADD: return add(op, step, worker);
        case QUANTIZE: return quantize_rows(op, step, worker);
    }
}

static void run_calls(const Op* ops, int num_ops, const Step& step, Worker& worker) {
    for (int i = 0; i < num_ops; i++) {
        if (ops[i].waits) worker.meet();
        worker.begin(i);
        call(ops[i], step, worker);
    }
}

const Kernels kernels = {LATHE_NAME(LATHE_ISA), sum_block, draw_token, run_calls};

}  // namespace lathe::LATHE_ISA
