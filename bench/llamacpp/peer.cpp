// llama.cpp, timed from the inside, so that no Python is in its way. Compiled by build.py, driven by peer.py.
//
//     peer MODEL THREADS [no-mmap] [flash-attention-on|flash-attention-off] [unified]
//
// Requests come on stdin, in words and numbers divided by white space:
//
//     time S P N, then S·P ids of prompts and S·(N-1) ids that follow them, sequence by sequence
//         -> "seconds of all prompts, seconds of the N-1 steps that read the following ids"
//     greedy S P N, then the same  -> the S·N likeliest next ids, sequence by sequence
//     logits P, then P ids         -> P rows of float32, one a token of the vocabulary: raw bytes
//
// What follows a prompt is given, not sampled: both engines read the same tokens and so the same experts, and no
// time goes into sampling here.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "llama.h"

struct Options {
    int threads = 1;
    bool mmap = true, unified = false;
    llama_flash_attn_type flash_attention = LLAMA_FLASH_ATTN_TYPE_AUTO;
};

[[noreturn]] static void fail(const std::string & why) {
    fprintf(stderr, "peer: %s\n", why.c_str());
    exit(1);
}

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A context for so many sequences of so many tokens, made once. Its cache is empty.
static llama_context * context_for(llama_model * model, const Options & options, int sequences, int length) {
    static std::map<std::pair<int, int>, llama_context *> contexts;
    llama_context *& context = contexts[{sequences, length}];
    if (!context) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = length * sequences;
        params.n_batch = std::max(2048, length);
        params.n_seq_max = sequences;
        params.n_threads = params.n_threads_batch = options.threads;
        params.flash_attn_type = options.flash_attention;
        params.kv_unified = options.unified;
        context = llama_init_from_model(model, params);
        if (!context) fail("no context of this size");
    }
    llama_memory_clear(llama_get_memory(context), false);
    return context;
}

static void add(llama_batch & batch, llama_token id, int position, int sequence, bool wants_logits) {
    const int row = batch.n_tokens++;
    batch.token[row] = id;
    batch.pos[row] = position;
    batch.n_seq_id[row] = 1;
    batch.seq_id[row][0] = sequence;
    batch.logits[row] = wants_logits;
}

static void decode(llama_context * context, llama_batch & batch) {
    if (llama_decode(context, batch)) fail("llama_decode failed");
    llama_synchronize(context);
}

static llama_token likeliest(llama_context * context, int row, int num_ids) {
    const float * logits = llama_get_logits_ith(context, row);
    return std::max_element(logits, logits + num_ids) - logits;
}

// Reads the prompts in one call, as Lathe's engine does, then the ids that follow, a step for all sequences.
static void run(llama_context * context, int S, int P, int N, const std::vector<llama_token> & prompts,
                const std::vector<llama_token> & following, bool timed, int num_ids) {
    llama_batch batch = llama_batch_init(S * P, 0, 1);
    std::vector<llama_token> likely(S * N);
    for (int s = 0; s < S; s++)
        for (int p = 0; p < P; p++) add(batch, prompts[s * P + p], p, s, p == P - 1);
    const double start = now();
    decode(context, batch);
    const double middle = now();
    if (!timed)
        for (int s = 0; s < S; s++) likely[s * N] = likeliest(context, (s + 1) * P - 1, num_ids);
    for (int n = 0; n < N - 1; n++) {
        batch.n_tokens = 0;
        for (int s = 0; s < S; s++) add(batch, following[s * (N - 1) + n], P + n, s, true);
        decode(context, batch);
        if (!timed)
            for (int s = 0; s < S; s++) likely[s * N + n + 1] = likeliest(context, s, num_ids);
    }
    const double end = now();
    llama_batch_free(batch);
    if (timed)
        printf("%.9f %.9f\n", middle - start, end - middle);
    else
        for (int i = 0; i < S * N; i++) printf("%d%c", likely[i], i + 1 < S * N ? ' ' : '\n');
}

static void write_logits(llama_context * context, const std::vector<llama_token> & ids, int num_ids) {
    llama_batch batch = llama_batch_init(ids.size(), 0, 1);
    for (size_t p = 0; p < ids.size(); p++) add(batch, ids[p], p, 0, true);
    decode(context, batch);
    for (size_t p = 0; p < ids.size(); p++)
        fwrite(llama_get_logits_ith(context, p), sizeof(float), num_ids, stdout);
    llama_batch_free(batch);
}

static std::vector<llama_token> read_ids(size_t count) {
    std::vector<llama_token> ids(count);
    for (llama_token & id : ids) std::cin >> id;
    return ids;
}

int main(int argc, char ** argv) {
    if (argc < 3) fail("MODEL and THREADS are needed");
    Options options;
    options.threads = atoi(argv[2]);
    for (int i = 3; i < argc; i++) {
        const std::string word = argv[i];
        if (word == "no-mmap") options.mmap = false;
        else if (word == "unified") options.unified = true;
        else if (word == "flash-attention-on") options.flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        else if (word == "flash-attention-off") options.flash_attention = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        else fail("unknown option " + word);
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR || getenv("PEER_VERBOSE")) fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    if (!options.mmap) params.load_mode = LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (!model) fail("the model could not be loaded");
    const int num_ids = llama_vocab_n_tokens(llama_model_get_vocab(model));
    printf("%d\n", num_ids);
    fflush(stdout);
    for (std::string request; std::cin >> request; fflush(stdout)) {
        int S = 1, P = 0, N = 1;
        if (request == "logits") std::cin >> P;
        else if (request == "time" || request == "greedy") std::cin >> S >> P >> N;
        else fail("unknown request " + request);
        const std::vector<llama_token> prompts = read_ids(S * P), following = read_ids(S * (N - 1));
        if (!std::cin) fail("a request ended too soon");
        llama_context * context = context_for(model, options, S, P + N + 255 & ~255);
        if (request == "logits") write_logits(context, prompts, num_ids);
        else run(context, S, P, N, prompts, following, request == "time", num_ids);
    }
}
