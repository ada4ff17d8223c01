// The threads that replay a step together: started once, they meet at barriers and share work by counters.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace lathe {

struct Team {
    int num_threads = 1;
    std::atomic<int> arrived{0};
    std::atomic<int> round{0};
    std::vector<std::atomic<int>> counters;

    // Returns when all threads have called it. Spins: calls are microseconds apart.
    void meet();
};

// What a thread needs of its own.
struct Worker {
    Team* team;
    int index;
    int first_counter = 0;  // of the call that is running
    std::vector<const void*> pointer_memory;
    std::vector<float> float_memory;

    // None of these is inline: what the instruction sets share must not be compiled with the flags of one.
    int num_threads() const;
    void meet();
    // The next piece of work, which no other thread gets. A call has four such counters.
    int next(int which = 0);
    // This thread's share of `count` equal things: [first, last).
    void share(int count, int& first, int& last) const;
    // Room that lasts until the next call of the same function.
    const void** pointers(int count);
    float* floats(int count);
};

constexpr int COUNTERS_PER_CALL = 4;

// Calls `work` on `num_threads` threads, this one included, and returns when all have. One run at a time.
void run_together(int num_threads, int num_counters, const std::function<void(Worker&)>& work);

}  // namespace lathe
