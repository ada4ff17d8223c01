// The C interface that Python loads. Every function here is named in library.py or program.py.
#pragma once
#include "interface.h"

#define LATHE_API extern "C" __attribute__((visibility("default")))

// Counts changes of this interface; library.py refuses a library with another number.
LATHE_API int lathe_abi_version(void);
// The instruction set that lathe_init chose: "avx512", "avx2", "neon" or "plain". NULL before.
LATHE_API const char* lathe_isa(void);
// Chooses the kernels: the best that this processor runs, or those of `isa` unless it is NULL or empty.
// Returns 0, or -1 where this library or this processor does not have that set.
LATHE_API int lathe_init(const char* isa, int num_threads);
// The logarithm of the sum of e^logit, added up in one order whatever the number of threads.
LATHE_API float lathe_normalizer(const float* logits, int vocab);
// A token from each row of logits [R, vocab] that the draws name, on all threads.
LATHE_API void lathe_draw(const float* logits, int vocab, const lathe::Draw* draws, int num_draws, lathe::Drawn* drawn);
// Makes these calls, on the threads that lathe_init named, this one among them. One run at a time; others wait.
LATHE_API void lathe_run(const lathe::Op* ops, int num_ops, const lathe::Step* step);
// GGUF's blocks of a matrix, row after row, in tiles, on all threads. `kind` is one of the packed ones.
LATHE_API void lathe_pack(int kind, const uint8_t* blocks, int rows, int columns, uint8_t* tiles);
