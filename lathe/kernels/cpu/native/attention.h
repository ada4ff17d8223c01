// Attention over the paged cache, with online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): memory for one
// block of keys, whatever the context.
//
// A page holds 16 tokens of a layer, in fp32 or fp16: keys [K, d, 16], so that 16 keys' products lie beside one
// another; values [K, 16, d]. A query's keys go by in blocks of 64 counted from its sequence's first, and every sum runs in their
// order: the same bits for a query whatever is computed beside it and however its prompt was cut.
#pragma once
#include "ops.h"

namespace lathe::LATHE_ISA {

constexpr int KEYS = 64;           // of a block
constexpr int MOST_HEAD_DIM = 256;
constexpr int QUERY_ROWS = 48;     // rows (queries x heads of a group) of a tile, at most, but for one query's

// The heads of one token: each normalized (if it has a weight), turned, times `scale`. x and out may be one.
static void turn(const float* x, int d, const float* weight, float eps, const float* cos, const float* sin, float scale, float* out) {
    float head[MOST_HEAD_DIM];
    if (weight) normalize(x, d, weight, eps, head);
    else memcpy(head, x, 4 * d);
    for (int i = 0, half = d / 2; i < half; i++) {
        float a = head[i], b = head[i + half];
        out[i] = (a * cos[i] - b * sin[i]) * scale;
        out[i + half] = (b * cos[i] + a * sin[i]) * scale;
    }
}

// A number of the cache.
struct Half { uint8_t bytes[2]; };

LATHE_INLINE F8 load(const Half* from) { return load_f16(from->bytes); }
LATHE_INLINE void store(Half* to, F8 x) { store_f16(to->bytes, x); }

template <class T>
struct Attention {
    float *q, *k, *v, *out;  // [T, H d], [T, K d], [T, K d], [T, H d]
    T *key_cache, *value_cache;
    int num_heads, num_kv_heads, d;
    const float *cos, *sin, *q_weight, *k_weight;  // [T, d/2]; [d] or null
    float eps, scale;

    T* key_page(int page, int head) const { return key_cache + ((int64_t)page * num_kv_heads + head) * d * PAGE; }
    T* value_page(int page, int head) const { return value_cache + ((int64_t)page * num_kv_heads + head) * d * PAGE; }
};

// A token's query heads of one group, and its key and value, which go into the cache.
template <class T>
static void write_group(const Attention<T>& a, const Step& step, int t, int kv_head) {
    const float *cos = a.cos + (int64_t)t * a.d / 2, *sin = a.sin + (int64_t)t * a.d / 2;
    int group = a.num_heads / a.num_kv_heads, page = step.slots[t] / PAGE, place = step.slots[t] % PAGE;
    int64_t from = ((int64_t)t * a.num_kv_heads + kv_head) * a.d;
    for (int h = 0; h < group; h++) {
        float* q = a.q + from * group + h * a.d;
        turn(q, a.d, a.q_weight, a.eps, cos, sin, a.scale, q);
    }
    float turned[MOST_HEAD_DIM];
    turn(a.k + from, a.d, a.k_weight, a.eps, cos, sin, 1, turned);
    T *keys = a.key_page(page, kv_head) + place, *values = a.value_page(page, kv_head) + place * a.d;
    for (int i = 0; i < a.d; i += 8) {
        T rounded[8];
        store(rounded, load(turned + i));
        for (int k = 0; k < 8; k++) keys[(i + k) * PAGE] = rounded[k];
        store(values + i, load(a.v + from + i));
    }
}

// scores[r][16 p ...] of R queries and the 16 keys of each of P pages. Meanwhile the values are fetched.
template <int R, int P, class T>
static void score(const float* const* q, const T* const* pages, const T* const* values, int d, float (*scores)[KEYS]) {
    F8 acc[P][R][2];
    for (int p = 0; p < P; p++)
        for (int r = 0; r < R; r++) acc[p][r][0] = acc[p][r][1] = zero();
    for (int i = 0; i < d; i++)
        for (int p = 0; p < P; p++) {
            __builtin_prefetch(pages[p] + (i + 16) * PAGE);
            __builtin_prefetch(values[p] + i * PAGE);
            F8 k0 = load(pages[p] + i * PAGE), k1 = load(pages[p] + i * PAGE + 8);
            for (int r = 0; r < R; r++) {
                F8 x = all(q[r][i]);
                acc[p][r][0] = fma(x, k0, acc[p][r][0]), acc[p][r][1] = fma(x, k1, acc[p][r][1]);
            }
        }
    for (int p = 0; p < P; p++)
        for (int r = 0; r < R; r++)
            store(scores[r] + 16 * p, acc[p][r][0]), store(scores[r] + 16 * p + 8, acc[p][r][1]);
}

// Of all pages of a block; as many at once as there are registers for their sums.
template <int R, class T>
LATHE_INLINE void score_block(
    const float* const* q, const T* const* pages, const T* const* values, int num_pages, int d, float (*scores)[KEYS]) {
    constexpr int P = R == 1 ? 4 : R <= 3 ? 2 : 1;
    int p = 0;
    for (; p + P <= num_pages; p += P) score<R, P>(q, pages + p, values + p, d, (float(*)[KEYS])(scores[0] + p * PAGE));
    for (; p < num_pages; p++) score<R, 1>(q, pages + p, values + p, d, (float(*)[KEYS])(scores[0] + p * PAGE));
}

// out[r][i ...] = out[r][i ...] * decay[r] + weights[r] . values[...][i ...] of `count` keys, for 8 W numbers
template <int R, int W, class T>
static void mix(const float (*weights)[KEYS], const float* decay, const T* const* pages, int count, int d, int i, float* const* out) {
    F8 acc[R][W];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) acc[r][w] = load(out[r] + i + 8 * w) * all(decay[r]);
    for (int key = 0; key < count; key++) {
        const T* value = pages[key / PAGE] + key % PAGE * d + i;
        F8 v[W];
        for (int w = 0; w < W; w++) v[w] = load(value + 8 * w);
        for (int r = 0; r < R; r++) {
            F8 weight = all(weights[r][key]);
            for (int w = 0; w < W; w++) acc[r][w] = fma(weight, v[w], acc[r][w]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < W; w++) store(out[r] + i + 8 * w, acc[r][w]);
}

template <int R, class T>
LATHE_INLINE void mix_block(const float (*weights)[KEYS], const float* decay, const T* const* pages, int count, int d, float* const* out) {
    constexpr int W = R == 1 ? 8 : R <= 3 ? 4 : 2;
    int i = 0;
    for (; i + 8 * W <= d; i += 8 * W) mix<R, W>(weights, decay, pages, count, d, i, out);
    for (; i < d; i += 8) mix<R, 1>(weights, decay, pages, count, d, i, out);
}

template <class F>
LATHE_INLINE void by_sixes(int count, F f) {
    int first = 0;
    for (; first + 6 <= count; first += 6) f(Number<6>(), first);
    switch (count - first) {
        case 1: f(Number<1>(), first); break;
        case 2: f(Number<2>(), first); break;
        case 3: f(Number<3>(), first); break;
        case 4: f(Number<4>(), first); break;
        case 5: f(Number<5>(), first); break;
    }
}

// The softmax of a row goes on over `seen` more scores, which become weights. Returns what older terms shrink by.
static float soften(float* scores, int seen, float& before, float& total) {
    float top = before;
    for (int i = 0; i < seen; i++) top = scores[i] > top ? scores[i] : top;
    F8 sum = zero();
    for (int i = 0; i < KEYS; i += 8) {
        F8 weights = i < seen ? exp(load(scores + i) - all(top)) : zero();
        if (i < seen && seen < i + 8) {
            float some[8];
            store(some, weights);
            weights = load_some(some, seen - i);
        }
        store(scores + i, weights);
        sum = sum + weights;
    }
    float decay = 1;
    if (top > before) {
        float apart[8];
        store(apart, exp(all(before - top)));
        decay = before == -INFINITY ? 0 : apart[0];
    }
    total = total * decay + sum_of(sum);
    before = top;
    return decay;
}

// The queries [first, last) of a span, for one key-value head and the query heads of its group.
template <class T>
static void attend_tile(const Attention<T>& a, const Step& step, const Span& span, int kv_head, int first, int last, Worker& worker) {
    int group = a.num_heads / a.num_kv_heads, num_rows = (last - first) * group, d = a.d;
    float* room = worker.floats(num_rows * (KEYS + 3));
    float(*scores)[KEYS] = (float(*)[KEYS])room;
    float *top = room + num_rows * KEYS, *total = top + num_rows, *decay = total + num_rows;
    const float** q = (const float**)worker.pointers(2 * num_rows);
    float** out = (float**)(q + num_rows);
    for (int row = 0; row < num_rows; row++) {
        int64_t place = ((int64_t)(span.start + first + row / group) * a.num_heads + kv_head * group + row % group) * d;
        q[row] = a.q + place, out[row] = a.out + place;
        top[row] = -INFINITY, total[row] = 0;
        memset(out[row], 0, 4 * d);
    }
    int seen_by_first = span.num_keys - span.num_queries + first + 1, seen_by_last = seen_by_first + last - first - 1;
    for (int begin = 0; begin < seen_by_last; begin += KEYS) {
        int count = least(KEYS, seen_by_last - begin);
        int num_pages = (count + PAGE - 1) / PAGE;
        const T *keys[KEYS / PAGE], *values[KEYS / PAGE];
        for (int p = 0; p < num_pages; p++) {
            int page = step.pages[span.first_page + begin / PAGE + p];
            keys[p] = a.key_page(page, kv_head), values[p] = a.value_page(page, kv_head);
        }
        by_sixes(num_rows, [&](auto r, int row) { score_block<r>(q + row, keys, values, num_pages, d, scores + row); });
        for (int row = 0; row < num_rows; row++) {
            int seen = least(count, seen_by_first + row / group - begin);
            decay[row] = seen > 0 ? soften(scores[row], seen, top[row], total[row]) : 1;
            if (seen <= 0) memset(scores[row], 0, sizeof(scores[row]));
        }
        by_sixes(num_rows, [&](auto r, int row) { mix_block<r>(scores + row, decay + row, values, count, d, out + row); });
    }
    for (int row = 0; row < num_rows; row++)
        for (int i = 0; i < d; i += 8) store(out[row] + i, load(out[row] + i) / all(total[row]));
}

// q, k, v, out, key cache, value cache (of the layer), H, K, d, cos, sin, q's weight or 0, k's weight or 0, narrow or 0,
// wide or 0 (of out), whether the cache is in fp16; f: eps, scale. q is changed.
template <class T>
static void attend(const Op& op, const Step& step, Worker& worker) {
    Attention<T> a{at<float>(op, 0), at<float>(op, 1), at<float>(op, 2), at<float>(op, 3), at<T>(op, 4),
                   at<T>(op, 5), (int)op.a[6], (int)op.a[7], (int)op.a[8], at<float>(op, 9), at<float>(op, 10),
                at<float>(op, 11), at<float>(op, 12), op.f[0], op.f[1]};
    int first, last;
    worker.share(step.num_tokens * a.num_kv_heads, first, last);
    for (int i = first; i < last; i++) write_group(a, step, i / a.num_kv_heads, i % a.num_kv_heads);
    worker.meet();

    int group = a.num_heads / a.num_kv_heads, many = most(1, QUERY_ROWS / group);
    auto pieces_of = [&](int s) { return a.num_kv_heads * ((step.spans[s].num_queries + many - 1) / many); };
    int count = 0, span = 0, before = 0;  // pieces of the spans before this one
    for (int s = 0; s < step.num_spans; s++) count += pieces_of(s);
    for (int piece; (piece = worker.next(count)) >= 0;) {
        if (piece < before) span = before = 0;
        while (piece >= before + pieces_of(span)) before += pieces_of(span++);
        int tile = (piece - before) / a.num_kv_heads, head = (piece - before) % a.num_kv_heads;
        int begin = tile * many, end = least(begin + many, step.spans[span].num_queries);
        attend_tile(a, step, step.spans[span], head, begin, end, worker);
        for (int t = begin + step.spans[span].start; t < end + step.spans[span].start; t++) {
            // 32 divides d here, so that a group's heads are whole blocks of their row.
            int64_t row = (int64_t)t * a.num_kv_heads + head;
            quantize_row(a.out + row * group * a.d, group * a.d, row, at<Narrow>(op, 13), at<Wide>(op, 14));
        }
    }
}

}  // namespace lathe::LATHE_ISA
