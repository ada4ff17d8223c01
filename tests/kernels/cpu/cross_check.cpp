// Runs the kernels on each instruction set that the library and this processor have, with the same inputs, and says
// how far each is from what is expected: the largest difference over the largest number. Exits 1 where that is too far.
// Sets that round a product and its sum together must have each other's bits.
//     cross_check               expects what the plain kernels compute here
//     cross_check write FILE    writes what the plain kernels compute, and then the best ones
//     cross_check read FILE     expects what is in FILE, which another machine wrote
// It needs neither Python nor PyTorch, so that it runs in an emulator.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "lathe.h"

using namespace lathe;

namespace {

constexpr int TOKENS = 7, WIDTH = 96, ROWS = 37;
constexpr int NARROW_BYTES = 48, WIDE_BYTES = 72;  // 32 activations: tiles.h
const char* const KINDS[] = {"f32", "bf16", "fp8", "q8_0", "q4_0", "q4_1"};

struct Result {
    std::string name;
    double tolerance;
    bool anywhere;  // the same bits on every machine: no cos, sin or exp of the C library is in it
    const float* numbers;
    int count;
};

#ifdef __aarch64__
constexpr bool PLAIN_FUSES = true;
#else
constexpr bool PLAIN_FUSES = false;
#endif

uint32_t state;

uint32_t random_bits() {  // Marsaglia's xorshift: the same inputs on every machine
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
}

template <class T = float>
T* room(int64_t count) {
    int64_t bytes = (count * (int64_t)sizeof(T) + 63) / 64 * 64;
    return (T*)std::memset(std::aligned_alloc(64, bytes), 0, bytes);
}

float* random_floats(int count) {
    float* out = room(count);
    for (int i = 0; i < count; i++) out[i] = (float)(random_bits() >> 8) / (1 << 23) - 1;
    return out;
}

uint8_t* random_bytes(int64_t count) {
    uint8_t* out = room<uint8_t>(count);
    for (int64_t i = 0; i < count; i++) out[i] = (uint8_t)(random_bits() >> 16);
    return out;
}

Matrix* random_matrix(Kind kind, int rows, int columns, int experts = 1) {
    Matrix* out = room<Matrix>(1);
    int64_t values = (int64_t)rows * columns * experts;
    out->kind = kind, out->rows = rows, out->columns = columns;
    if (kind == F32) {
        out->data = (const uint8_t*)random_floats((int)values);
        out->expert_bytes = 4 * values / experts;
    } else if (kind == BF16) {
        const float* floats = random_floats((int)values);
        uint8_t* halves = room<uint8_t>(2 * values);
        for (int64_t i = 0; i < values; i++) std::memcpy(halves + 2 * i, (const uint8_t*)(floats + i) + 2, 2);
        out->data = halves, out->expert_bytes = 2 * values / experts;
    } else if (kind == FP8) {
        uint8_t* bytes = random_bytes(values);
        for (int64_t i = 0; i < values; i++) bytes[i] &= 0xbf;  // no NaN
        int blocks = (rows + 127) / 128 * ((columns + 127) / 128);
        out->data = bytes, out->expert_bytes = values / experts;
        out->scales = random_floats(blocks * experts), out->expert_scales = blocks;
    } else {
        int bytes = kind == Q8_0 ? 544 : kind == Q4_1 ? 320 : 288, scales = kind == Q4_1 ? 32 : 16;
        int64_t tiles = (int64_t)((rows + 15) / 16) * (columns / 32) * experts;
        uint8_t* data = random_bytes(tiles * bytes);
        for (int64_t tile = 0; tile < tiles; tile++)
            for (int i = 0; i < scales; i++)  // half numbers of 2^-7, of either sign
                data[tile * bytes + 2 * i + 1] = (uint8_t)(0x20 | (data[tile * bytes + 2 * i + 1] & 0x83));
        out->data = data, out->expert_bytes = tiles * bytes / experts;
    }
    return out;
}

template <class T>
int64_t place(T* pointer) {
    return (int64_t)(intptr_t)pointer;
}

// The calls of one run, and what they leave behind.
struct Table {
    std::vector<Op> ops;
    std::vector<Result> results;

    void call(Code code, std::vector<int64_t> a, std::vector<float> f = {}) {
        Op op = {};
        op.code = code, op.waits = 1;
        std::copy(a.begin(), a.end(), op.a);
        std::copy(f.begin(), f.end(), op.f);
        ops.push_back(op);
    }
    float* result(const std::string& name, int count, double tolerance = 2e-6, bool anywhere = true) {
        float* out = room(count);
        results.push_back({name, tolerance, anywhere, out, count});
        return out;
    }
};

void add_rows(Table& table) {
    float *x = random_floats(TOKENS * WIDTH), *y = random_floats(TOKENS * WIDTH), *weight = random_floats(WIDTH);
    for (int width : {WIDTH, 75}) {
        std::string name = " of " + std::to_string(width);
        int64_t out = place(table.result("norm" + name, TOKENS * width));
        table.call(NORM, {place(x), width, place(weight), out, 0, 0, 0}, {1e-6f});
        out = place(table.result("swiglu" + name, TOKENS * width));
        table.call(SWIGLU, {place(x), place(y), width, out, 0, 0});
        table.call(ADD, {place(x), place(y), place(table.result("add" + name, TOKENS * width)), width});
    }
    table.call(GATHER, {place(x), WIDTH, place(table.result("gather", 2 * WIDTH)), 0, 0});
}

void add_products(Table& table) {
    float* x = random_floats(TOKENS * WIDTH);
    void *narrow = room<uint8_t>(TOKENS * WIDTH / 32 * NARROW_BYTES), *wide = room<uint8_t>(TOKENS * WIDTH / 32 * WIDE_BYTES);
    table.call(QUANTIZE, {place(x), WIDTH, place(narrow), place(wide)});
    for (Kind kind : {F32, BF16, FP8, Q8_0, Q4_0, Q4_1})
        for (int columns : {WIDTH, 75}) {
            if (kind >= Q8_0 && columns % 32) continue;
            Matrix* matrix = random_matrix(kind, ROWS, columns);
            matrix->bias = random_floats(ROWS);
            std::string name = std::string(KINDS[kind]) + " of " + std::to_string(columns);
            int64_t residual = place(random_floats(TOKENS * ROWS));
            int64_t out = place(table.result("linear " + name, TOKENS * ROWS));
            table.call(LINEAR, {place(matrix), place(x), place(narrow), place(wide), out, residual, 0});
            if (kind == FP8) continue;  // no checkpoint keeps its embeddings so
            table.call(EMBED, {place(matrix), place(table.result("embed " + name, TOKENS * columns))});
        }
}

void add_attention(Table& table) {
    constexpr int H = 4, K = 2, PAGES = 6;
    for (int d : {24, 64}) {
        float *cos = room(TOKENS * d / 2), *sin = room(TOKENS * d / 2), *frequencies = random_floats(d / 2);
        table.call(ROPE_TABLE, {place(frequencies), d / 2, place(cos), place(sin)}, {1.25f});
        int64_t q = place(random_floats(TOKENS * H * d)), k = place(random_floats(TOKENS * K * d));
        int64_t v = place(random_floats(TOKENS * K * d)), keys = place(random_floats(PAGES * PAGE * K * d));
        int64_t values = place(random_floats(PAGES * PAGE * K * d)), weight = place(random_floats(d));
        int64_t out = place(table.result("attend with heads of " + std::to_string(d), TOKENS * H * d, 2e-5, false));
        float scale = 1 / std::sqrt((float)d);
        table.call(ATTEND, {q, k, v, out, keys, values, H, K, d, place(cos), place(sin), weight, weight, 0, 0}, {1e-6f, scale});
    }
}

void add_experts(Table& table) {
    constexpr int E = 5, CHOSEN = 2, INNER = 64;
    float* x = random_floats(TOKENS * WIDTH);
    void *narrow = room<uint8_t>(TOKENS * WIDTH / 32 * NARROW_BYTES), *wide = room<uint8_t>(TOKENS * WIDTH / 32 * WIDE_BYTES);
    table.call(QUANTIZE, {place(x), WIDTH, place(narrow), place(wide)});
    int32_t* ids = room<int32_t>(TOKENS * CHOSEN);
    float* weights = table.result("route", TOKENS * CHOSEN, 2e-6, false);
    table.call(ROUTE, {place(random_floats(TOKENS * E)), E, CHOSEN, place(ids), place(weights), 1});
    for (Kind kind : {F32, BF16, FP8, Q8_0, Q4_0, Q4_1}) {
        Matrix *gate = random_matrix(kind, INNER, WIDTH, E), *up = random_matrix(kind, INNER, WIDTH, E);
        Matrix* down = random_matrix(kind, WIDTH, INNER, E);
        int sorted = TOKENS * CHOSEN;
        int64_t order = place(room<int32_t>(2 * sorted)), begins = place(room<int32_t>(E + 1));
        int64_t inner = place(room(2 * sorted * INNER)), activated = place(room<uint8_t>(sorted * INNER / 32 * WIDE_BYTES));
        int64_t outs = place(room(sorted * WIDTH));
        // A gate that differs in its last bit may be rounded to the next of 127 steps.
        double tolerance = kind >= Q4_0 ? 1e-2 : kind == Q8_0 ? 1e-4 : 1e-5;
        int64_t out = place(table.result(std::string("experts ") + KINDS[kind], TOKENS * WIDTH, tolerance, false));
        table.call(EXPERTS, {place(gate), place(up), place(down), place(x), place(narrow), place(wide), place(ids),
                             place(weights), CHOSEN, E, order, begins, inner, activated, outs, out, 0});
    }
}

void run(int num_tokens, std::vector<Result>& results) {
    state = 2463534242u;
    Table table;
    add_rows(table), add_products(table), add_attention(table), add_experts(table);
    // All but one go on after 64 that are in the cache, on pages that lie anywhere; the last is another sequence's first.
    int32_t token_ids[TOKENS] = {0, 36, 16, 15, 31, 32, 1}, pages[] = {3, 0, 5, 1, 4, 2}, last = num_tokens - 1;
    int32_t positions[TOKENS] = {64, 65, 66, 67, 68, 69}, slots[TOKENS] = {64, 65, 66, 67, 68, 69}, rows[] = {last - 1, last};
    positions[last] = 0, slots[last] = 32;
    Span spans[] = {{0, last, 64 + last, 0}, {last, 1, 1, 5}};
    Step step = {};
    step.num_tokens = num_tokens, step.num_rows = 2, step.num_spans = 2;
    step.token_ids = token_ids, step.positions = positions, step.slots = slots, step.rows = rows;
    step.spans = spans, step.pages = pages;
    lathe_run(table.ops.data(), (int)table.ops.size(), &step);
    for (Result& each : table.results) {
        each.name = std::to_string(num_tokens) + " tokens: " + each.name;
        results.push_back(each);
    }
}

std::vector<Result> run() {
    std::vector<Result> results;
    for (int num_tokens : {7, 6, 5}) run(num_tokens, results);  // four at a time, then 3, 2 or 1
    return results;
}

// The largest difference over the largest number; infinite where one is no number.
double distance(const float* some, const float* expected, int count) {
    double apart = 0, largest = 0;
    for (int i = 0; i < count; i++) {
        if (!std::isfinite(some[i]) || !std::isfinite(expected[i])) return INFINITY;
        apart = std::max(apart, std::fabs((double)some[i] - expected[i]));
        largest = std::max(largest, std::fabs((double)expected[i]));
    }
    return largest > 0 ? apart / largest : INFINITY;
}

std::vector<float> joined(const std::vector<Result>& results) {
    std::vector<float> out;
    for (const Result& each : results) out.insert(out.end(), each.numbers, each.numbers + each.count);
    return out;
}

bool same_bits(const float* some, const float* others, int count) {
    return !std::memcmp(some, others, (size_t)count * sizeof(float));
}

void write(const char* path, const std::vector<float>& plain, const std::vector<float>& fused) {
    std::FILE* file = std::fopen(path, "wb");
    size_t done = file ? std::fwrite(plain.data(), 4, plain.size(), file) + std::fwrite(fused.data(), 4, fused.size(), file) : 0;
    if (!file || std::fclose(file) || done != plain.size() + fused.size()) std::perror(path), std::exit(2);
}

// Both are as long as `plain` is; a machine without vectors leaves `fused` out.
void read(const char* path, std::vector<float>& plain, std::vector<float>& fused) {
    std::FILE* file = std::fopen(path, "rb");
    if (!file || std::fread(plain.data(), 4, plain.size(), file) != plain.size()) std::perror(path), std::exit(2);
    fused.resize(plain.size());
    fused.resize(std::fread(fused.data(), 4, fused.size(), file) == plain.size() ? plain.size() : 0);
    std::fclose(file);
}

}  // namespace

int main(int count, char** arguments) {
    std::string mode = count == 3 ? arguments[1] : "";
    lathe_init("plain", 1);
    std::vector<float> expected = joined(run()), fused;
    if (mode == "write") {
        lathe_init(nullptr, 1);
        if (PLAIN_FUSES || std::strcmp(lathe_isa(), "plain")) fused = joined(run());
        return write(arguments[2], expected, fused), 0;
    }
    if (mode == "read") read(arguments[2], expected, fused);
    bool elsewhere = !fused.empty(), wrong = false;
    for (const char* isa : {"plain", "avx2", "avx512", "neon"}) {
        if (lathe_init(isa, 2)) {
            std::printf("%s: not in this library, or not run by this processor\n", isa);
            continue;
        }
        std::vector<Result> results = run();
        bool fuses = PLAIN_FUSES || std::strcmp(isa, "plain"), is_first = fuses && fused.empty();
        if (is_first) fused = joined(results);
        size_t place = 0;
        for (const Result& each : results) {
            double apart = distance(each.numbers, expected.data() + place, each.count);
            bool compared = fuses && !is_first && (each.anywhere || !elsewhere);
            bool same = compared && same_bits(each.numbers, fused.data() + place, each.count);
            bool too_far = !(apart <= each.tolerance), other = compared && !same;
            std::printf("%s: %s: %.1e%s%s%s\n", isa, each.name.c_str(), apart, too_far ? " TOO FAR" : "",
                        same ? " same bits" : "", other ? " OTHER BITS" : "");
            wrong = wrong || too_far || other;
            place += each.count;
        }
    }
    return wrong ? 1 : 0;
}
