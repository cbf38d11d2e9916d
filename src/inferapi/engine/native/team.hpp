// Threads that go through a list of tasks together. A task is cut in parts; whoever is there takes the next one.
//
// Nobody waits for a thread to arrive, only for parts that somebody has begun: a thread that the operating system has
// put aside, since another process wants its core, holds up the others by one part at the most, once.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>

// How far a task is.
struct alignas(64) Progress {
    std::atomic<long> taken{0}, done{0};

    // Calls compute(part) for parts that nobody has taken, then waits until all are done.
    template <typename Compute>
    void join(long parts, const Compute& compute) {
        long mine = 0;
        for (long part; taken.load(std::memory_order_relaxed) < parts &&
                        (part = taken.fetch_add(1, std::memory_order_relaxed)) < parts;
             ++mine) {
            compute(part);
        }
        if (mine > 0) done.fetch_add(mine, std::memory_order_release);
        // Most waits are shorter than a microsecond. Who waits longer waits for a thread that has no core.
        for (int spins = 0; done.load(std::memory_order_acquire) < parts; ++spins) {
            if (spins < 2048) {
                _mm_pause();
            } else {
                sched_yield();
            }
        }
    }
};
