// Threads that go through a list of tasks together. A task is cut in parts; whoever is there takes the next one.
//
// Nobody waits for a thread to arrive, and hardly for one that has begun: a thread that the operating system has put
// aside, since another process wants its core, may hold a part for milliseconds. Who has waited for longer than a part
// takes computes it once more (the backup tasks of Dean & Ghemawat, "MapReduce", OSDI 2004, section 3.6). That both
// write their results, one of them late, does no harm: a part's results depend on nothing but its inputs, and neither
// these nor the results are written to by another task of the list. The last thread leaves before another list begins.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

// What a thread computes at the moment.
struct alignas(64) Seat {
    static constexpr int64_t NOTHING = -1, CLAIMED = int64_t(1) << 62;  // somebody else computes it too

    std::atomic<int64_t> work{NOTHING};
};

// The threads at a list of tasks, one of whom looks from here.
struct Table {
    Seat* seats;
    int threads, mine;
};

// How far a task is.
struct alignas(64) Progress {
    std::atomic<long> taken{0}, done{0};

    // Calls compute(part) for parts that nobody has taken, then waits until all are done. `task`: its number in the list.
    template <typename Compute>
    void join(long parts, const Table& table, long task, const Compute& compute) {
        std::atomic<int64_t>& work = table.seats[table.mine].work;
        for (long part; taken.load(std::memory_order_relaxed) < parts &&
                        (part = taken.fetch_add(1, std::memory_order_relaxed)) < parts;) {
            work.store(name(task, part), std::memory_order_relaxed);
            compute(part);
            if (work.exchange(Seat::NOTHING, std::memory_order_acq_rel) != Seat::NOTHING)
                done.fetch_add(1, std::memory_order_release);
        }
        // Most waits are shorter than a microsecond.
        for (int spins = 0; done.load(std::memory_order_acquire) < parts; ++spins) {
            if (spins < PATIENCE) {
                _mm_pause();
            } else if (!help_out(table, task, compute)) {
                sched_yield();
            }
        }
    }

   private:
    static constexpr int PATIENCE = 1024;  // some tens of microseconds
    static constexpr int PART_BITS = 31;

    static int64_t name(long task, long part) { return int64_t(task) << PART_BITS | part; }

    // Computes what another thread has begun, whoever is done first.
    template <typename Compute>
    bool help_out(const Table& table, long task, const Compute& compute) {
        for (int thread = 0; thread < table.threads; ++thread) {
            std::atomic<int64_t>& work = table.seats[thread].work;
            int64_t seen = work.load(std::memory_order_acquire);
            if (thread == table.mine || seen == Seat::NOTHING || seen & Seat::CLAIMED || seen >> PART_BITS != task) continue;
            const int64_t claimed = seen | Seat::CLAIMED;
            if (!work.compare_exchange_strong(seen, claimed, std::memory_order_acq_rel)) continue;
            compute(seen & ((int64_t(1) << PART_BITS) - 1));
            int64_t expected = claimed;
            if (work.compare_exchange_strong(expected, Seat::NOTHING, std::memory_order_acq_rel))
                done.fetch_add(1, std::memory_order_release);
            return true;
        }
        return false;
    }
};
