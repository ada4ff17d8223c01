// The threads that replay a step together: started once, they meet at barriers and share work by counters.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace lathe {

// How much of a thread's own range of a call's work is taken. A call has up to four kinds of work.
struct alignas(64) Taken {
    std::atomic<int> pieces[4];
};

struct Team {
    int num_threads = 1;
    std::atomic<int> arrived{0};
    std::atomic<int> round{0};
    std::vector<Taken> taken;  // [calls, threads]

    // Returns when all threads have called it. Spins: calls are microseconds apart.
    void meet();
};

// What a thread needs of its own.
struct Worker {
    Team* team = nullptr;
    int index = 0;
    int call = 0;       // the number of the one that is running
    int helped[4] = {};  // threads whose range of its work is done
    std::vector<const void*> pointer_memory;
    std::vector<float> float_memory;

    // None of these is inline: what the instruction sets share must not be compiled with the flags of one.
    int num_threads() const;
    void meet();
    void begin(int call);
    // The next of `count` pieces of work, which no other thread gets, or -1. Each thread goes through a range of its
    // own, so that it reads on in memory, and then helps the others.
    int next(int count, int which = 0);
    // This thread's share of `count` equal things: [first, last).
    void share(int count, int& first, int& last) const;
    // Room that lasts until the next call of the same function.
    const void** pointers(int count);
    float* floats(int count);
};

// Calls `work` on `num_threads` threads, this one included, and returns when all have. One run at a time.
void run_together(int num_threads, int num_calls, const std::function<void(Worker&)>& work);

}  // namespace lathe
