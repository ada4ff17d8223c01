// From a row of logits to a token: what engine/sampler.py says in PyTorch, for the cases that come with every token.
#pragma once
#include "interface.h"
#include "simd.h"
#include "team.h"

namespace lathe::LATHE_ISA {

static float largest_of(const float* x, int count) {
    F8 most = all(-INFINITY);
    int i = 0;
    for (; i + 8 <= count; i += 8) most = max(most, load(x + i));
    float top = max_of(most);
    for (; i < count; i++) top = x[i] > top ? x[i] : top;
    return top;
}

// The largest number and the sum of e^(x - largest).
static void sum_block(const float* x, int count, float& largest, float& total) {
    int i = 0;
    float top = largest = largest_of(x, count);
    F8 sum = zero();
    if (top == -INFINITY) top = 0;
    for (; i + 8 <= count; i += 8) sum = sum + exp(load(x + i) - all(top));
    total = sum_of(sum);
    for (; i < count; i++) total += std::exp(x[i] - top);
}

// Repetition, presence and frequency penalties of the tokens that were seen.
static void penalize(const float* logits, int vocab, const Draw& draw, float* scores) {
    for (int i = 0; i < vocab; i++) {
        float x = logits[i];
        if (draw.seen[i]) {
            x = x > 0 ? x / draw.repetition : x * draw.repetition;
            x -= (draw.counts[i] > 0 ? draw.presence : 0.0f) + draw.frequency * draw.counts[i];
        }
        scores[i] = x;
    }
}

struct Candidate {
    float score;
    int id;
};

// Of two equal scores the smaller id is better.
LATHE_INLINE bool better(Candidate a, Candidate b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

// A heap whose first is the worst.
static void sink(Candidate* heap, int count, int place) {
    for (int child; (child = 2 * place + 1) < count; place = child) {
        if (child + 1 < count && better(heap[child], heap[child + 1])) child++;
        if (!better(heap[place], heap[child])) return;
        Candidate held = heap[place];
        heap[place] = heap[child], heap[child] = held;
    }
}

// The `count` best, best first.
static void find_best(const float* scores, int vocab, int count, Candidate* best) {
    for (int i = 0; i < count; i++) best[i] = {scores[i], i};
    for (int place = count / 2 - 1; place >= 0; place--) sink(best, count, place);
    for (int i = count; i < vocab; i++) {
        if (i % 8 == 0 && i + 8 <= vocab)  // hardly ever is there a better one among the next eight
            while (i + 8 <= vocab && none_above(scores + i, best[0].score)) i += 8;
        if (i < vocab && scores[i] > best[0].score) {
            best[0] = {scores[i], i};
            sink(best, count, 0);
        }
    }
    for (int left = count - 1; left > 0; left--) {
        Candidate held = best[0];
        best[0] = best[left], best[left] = held;
        sink(best, left, 0);
    }
}

// The token, or -1 where more candidates are needed than are looked for here.
static int draw_token(const float* logits, int vocab, const Draw& draw, Worker& worker) {
    constexpr int MOST = 512;
    const float* scores = logits;
    if (draw.seen) {
        float* changed = worker.floats(vocab);
        penalize(logits, vocab, draw, changed);
        scores = changed;
    }
    Candidate best[MOST];
    best[0] = {scores[0], 0};
    if (draw.temperature == 0) {
        find_best(scores, vocab, 1, best);
        return best[0].id;
    }
    auto chance = [&](float score, float top) { return std::exp(((double)score - top) / draw.temperature); };
    bool whole = draw.top_k <= 0 && draw.top_p >= 1 && draw.min_p <= 0;
    if (draw.top_k > MOST) return -1;
    int count = least(whole ? 1 : draw.top_k > 0 ? draw.top_k : MOST, vocab);
    find_best(scores, vocab, count, best);
    float top = best[0].score;
    double total = 0, before = 0;
    if (draw.top_k > 0)
        for (int i = 0; i < count; i++) total += chance(best[i].score, top);
    else
        for (int i = 0; i < vocab; i++) total += chance(scores[i], top);
    if (whole) {
        double point = draw.uniform * total;
        for (int i = 0; i < vocab; i++)
            if ((before += chance(scores[i], top)) > point) return i;
        return best[0].id;
    }
    int kept = 0;
    double least_chance = draw.min_p;  // of the best one's, which is 1
    for (; kept < count; kept++) {
        double p = chance(best[kept].score, top);
        if (kept > 0 && (before >= draw.top_p * total || p < least_chance)) break;
        before += p;
    }
    if (kept == count && draw.top_k <= 0 && count < vocab) return -1;
    double point = draw.uniform * before, sum = 0;
    for (int i = 0; i < kept; i++)
        if ((sum += chance(best[i].score, top)) > point) return best[i].id;
    return best[0].id;
}

}  // namespace lathe::LATHE_ISA
