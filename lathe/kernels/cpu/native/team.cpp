#include "team.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

namespace lathe {

static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void Team::meet() {
    if (num_threads == 1) return;
    int now = round.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) == num_threads - 1) {
        arrived.store(0, std::memory_order_relaxed);
        round.store(now + 1, std::memory_order_release);
        return;
    }
    // When the machine has other work, the thread that is waited for may need this core.
    for (int spins = 1; round.load(std::memory_order_acquire) == now; spins++)
        if (spins % 4096) pause();
        else sched_yield();
}

int Worker::num_threads() const { return team->num_threads; }

void Worker::meet() { team->meet(); }

void Worker::begin(int number) {
    call = number;
    for (int& each : helped) each = 0;
}

int Worker::next(int count, int which) {
    for (int& turn = helped[which]; turn < team->num_threads; turn++) {
        int owner = (index + turn) % team->num_threads;
        int first = (int)((int64_t)count * owner / team->num_threads);
        int last = (int)((int64_t)count * (owner + 1) / team->num_threads);
        auto& taken = team->taken[(int64_t)call * team->num_threads + owner].pieces[which];
        if (first + taken.load(std::memory_order_relaxed) >= last) continue;
        int piece = first + taken.fetch_add(1, std::memory_order_relaxed);
        if (piece < last) return piece;
    }
    return -1;
}

void Worker::share(int count, int& first, int& last) const {
    first = (int)((int64_t)count * index / team->num_threads);
    last = (int)((int64_t)count * (index + 1) / team->num_threads);
}

const void** Worker::pointers(int count) {
    if ((int)pointer_memory.size() < count) pointer_memory.resize(count);
    return pointer_memory.data();
}

float* Worker::floats(int count) {
    if ((int)float_memory.size() < count) float_memory.resize(count);
    return float_memory.data();
}

namespace {

// Threads that wait for the next run: a while by spinning, as a token's steps follow one another, then asleep.
class Pool {
   public:
    explicit Pool(int num_threads) {
        team.num_threads = num_threads;
        workers.resize(num_threads);
        for (int index = 0; index < num_threads; index++) workers[index].team = &team, workers[index].index = index;
        for (int index = 1; index < num_threads; index++) threads.emplace_back([this, index] { serve(index); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            closing = true;
            runs.fetch_add(1, std::memory_order_release);
        }
        wake.notify_all();
        for (auto& thread : threads) thread.join();
    }

    void run(int num_calls, const std::function<void(Worker&)>& work) {
        size_t needed = (size_t)num_calls * team.num_threads;
        if (team.taken.size() < needed) team.taken = std::vector<Taken>(needed);
        for (size_t i = 0; i < needed; i++)
            for (auto& pieces : team.taken[i].pieces) pieces.store(0, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex);
            current = &work;
            runs.fetch_add(1, std::memory_order_release);
        }
        wake.notify_all();
        work(workers[0]);
        team.meet();
    }

    int num_threads() const { return team.num_threads; }

   private:
    void serve(int index) {
        int seen = 0;
        while (true) {
            auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(2000);
            while (runs.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < deadline)
                for (int i = 0; i < 64; i++) pause();
            if (runs.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return runs.load(std::memory_order_acquire) != seen; });
            }
            seen++;
            if (closing) return;
            (*current)(workers[index]);
            team.meet();
        }
    }

    Team team;
    std::vector<Worker> workers;
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<int> runs{0};
    const std::function<void(Worker&)>* current = nullptr;
    bool closing = false;
};

struct Pools {
    std::mutex mutex;
    std::unique_ptr<Pool> pool;
};

// Never destroyed: a program may end while its threads sleep.
Pools& pools() {
    static Pools* all = [] {
        // A forked child has none of its parent's threads: it forgets them and starts its own when it needs them.
        pthread_atfork(
            [] { pools().mutex.lock(); }, [] { pools().mutex.unlock(); },
            [] { pools().pool.release(), pools().mutex.unlock(); });
        return new Pools;
    }();
    return *all;
}

}  // namespace

void run_together(int num_threads, int num_calls, const std::function<void(Worker&)>& work) {
    std::lock_guard<std::mutex> lock(pools().mutex);
    auto& pool = pools().pool;
    if (!pool || pool->num_threads() != num_threads) pool.reset(), pool.reset(new Pool(num_threads));
    pool->run(num_calls, work);
}

}  // namespace lathe
