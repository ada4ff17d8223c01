// A layer's experts. Tokens are sorted by expert, so that an expert's weights are read once for all its tokens.
#pragma once
#include "ops.h"

namespace lathe::LATHE_ISA {

// The k largest of the logits' softmax (over all experts, in fp32), largest first; of equals the first.
static void choose(const float* logits, int num_experts, int k, bool normalized, int32_t* ids, float* weights, float* probs) {
    float most = logits[0], total = 0, chosen = 0;
    for (int e = 1; e < num_experts; e++) most = logits[e] > most ? logits[e] : most;
    for (int e = 0; e < num_experts; e++) total += probs[e] = std::exp(logits[e] - most);
    for (int j = 0; j < k; j++) {
        int best = 0;
        for (int e = 1; e < num_experts; e++)
            if (probs[e] > probs[best]) best = e;
        ids[j] = best, weights[j] = probs[best] / total;
        chosen += weights[j];
        probs[best] = -1;
    }
    if (normalized)
        for (int j = 0; j < k; j++) weights[j] /= chosen;
}

// logits [T, E], E, k, ids [T, k], weights [T, k], normalized
static void route(const Op& op, const Step& step, Worker& worker) {
    int num_experts = (int)op.a[1], k = (int)op.a[2], first, last;
    float* probs = worker.floats(num_experts);
    worker.share(step.num_tokens, first, last);
    for (int t = first; t < last; t++)
        choose(at<float>(op, 0) + (int64_t)t * num_experts, num_experts, k, op.a[5] != 0, at<int32_t>(op, 3) + t * k,
               at<float>(op, 4) + t * k, probs);
}

// Who was chosen at all, and the sorted rows of each: begins[e] to begins[e + 1].
struct Chosen {
    const int32_t *begins, *experts;
    int count;
};

// All pieces of the chosen experts' matrices, each by one thread. How an expert's matrix is cut depends on how many
// tokens chose it; all are cut as for the average, so that a piece's number says what it is.
template <class Multiply>
static void share_experts(Worker& worker, int which, const Chosen& chosen, const Pieces& pieces, Multiply multiply) {
    for (int piece; (piece = worker.next(chosen.count * pieces.count, which)) >= 0;)
        multiply(chosen.experts[piece / pieces.count], piece % pieces.count);
}

// gate, up and down matrices, x or 0, narrow or 0, wide or 0, ids [T, k], weights [T, k], k, E,
// choice of each sorted row [Tk] then sorted row of each choice [Tk], first sorted row of each expert [E + 1] and those
// that were chosen [E],
// gate's and up's outputs [2, Tk, I], inner activations in down's form (fp32 ones: in place of gate's), out of each
// sorted row [Tk, D], out [T, D], residual or 0
static void experts(const Op& op, const Step& step, Worker& worker) {
    const Matrix &gate = *at<Matrix>(op, 0), &up = *at<Matrix>(op, 1), &down = *at<Matrix>(op, 2);
    int k = (int)op.a[8], num_experts = (int)op.a[9], num_rows = step.num_tokens * k;
    int inner = gate.rows, width = down.rows;
    const int32_t* ids = at<int32_t>(op, 6);
    int32_t *choices = at<int32_t>(op, 10), *sorted = choices + num_rows;
    int32_t *begins = at<int32_t>(op, 11), *active = begins + num_experts + 1;
    float *gates = at<float>(op, 12), *ups = gates + (int64_t)num_rows * inner, *outs = at<float>(op, 14);

    if (worker.index == 0) {  // a counting sort
        memset(begins, 0, 4 * (num_experts + 1));
        for (int i = 0; i < num_rows; i++) begins[ids[i] + 1]++;
        for (int e = 0; e < num_experts; e++) begins[e + 1] += begins[e];
        for (int i = 0; i < num_rows; i++) choices[sorted[i] = begins[ids[i]]++] = i;
        for (int e = num_experts; e > 0; e--) begins[e] = begins[e - 1];
        begins[0] = 0;
        for (int e = 0, i = 0; e < num_experts; e++)
            if (begins[e + 1] > begins[e]) active[i++] = e;
    }
    worker.meet();
    Chosen chosen{begins, active, 0};
    for (int e = 0; e < num_experts; e++) chosen.count += begins[e + 1] > begins[e];

    const void** tokens = worker.pointers(num_rows);
    for (int row = 0; row < num_rows; row++)
        tokens[row] = activation(gate, at<float>(op, 3), at<Narrow>(op, 4), at<Wide>(op, 5), choices[row] / k);
    int tokens_each = (num_rows + chosen.count - 1) / most(1, chosen.count);  // none are chosen by no tokens
    auto multiply_all = [&](int which, const Matrix& matrix, float* outs) {
        Pieces pieces = cut(matrix, tokens_each, worker.num_threads());
        share_experts(worker, which, chosen, pieces, [&](int expert, int piece) {
            int begin = begins[expert], rows = matrix.rows;
            multiply_piece(
                matrix, expert, pieces, piece, tokens + begin, begins[expert + 1] - begin,
                [&](int token, int row, int many, const float* sums) {
                    memcpy(outs + (int64_t)(begin + token) * rows + row, sums, 4 * many);
                });
        });
    };
    multiply_all(0, gate, gates);
    multiply_all(1, up, ups);
    worker.meet();

    int first, last;
    worker.share(num_rows, first, last);
    for (int row = first; row < last; row++) {
        float* activated = gates + (int64_t)row * inner;
        swiglu_row(activated, ups + (int64_t)row * inner, inner, activated);
        if (down.kind >= Q8_0)
            quantize_row(activated, inner, row, down.kind == Q8_0 ? nullptr : at<Narrow>(op, 13),
                         down.kind == Q8_0 ? at<Wide>(op, 13) : nullptr);
    }
    worker.meet();

    for (int row = 0; row < num_rows; row++)
        tokens[row] = activation(down, gates, at<Narrow>(op, 13), at<Wide>(op, 13), row);
    multiply_all(2, down, outs);
    worker.meet();

    worker.share(step.num_tokens, first, last);
    for (int t = first; t < last; t++) {
        const float *weights = at<float>(op, 7) + t * k, *residual = at<float>(op, 16);
        float* out = at<float>(op, 15) + (int64_t)t * width;
        for (int i = 0; i < width; i += 8) {
            int many = least(8, width - i);
            auto get = [many](const float* from) { return many == 8 ? load(from) : load_some(from, many); };
            F8 sum = zero();  // a token's terms are added in the order of its choice
            for (int j = 0; j < k; j++)
                sum = fma(all(weights[j]), get(outs + (int64_t)sorted[t * k + j] * width + i), sum);
            if (residual) sum = get(residual + (int64_t)t * width + i) + sum;
            if (many == 8) store(out + i, sum);
            else store_some(out + i, sum, many);
        }
    }
}

}  // namespace lathe::LATHE_ISA
