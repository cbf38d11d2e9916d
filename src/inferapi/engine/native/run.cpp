// The library's door: a list of calls, computed by the caller and whoever of its helpers has a core.
//
// Threads of its own rather than OpenMP's: a team there starts and ends together, so that one thread without a core
// holds up all the others at every call. Here a helper that comes late finds less to do, and nobody waits for it.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <system_error>
#include <thread>
#include <vector>

#include "calls.hpp"
#include "team.hpp"

namespace {

Product product_of(const Linear& call) {
    const Matrix* weight = &call.weight;
    return {{weight, weight}, 1, 0, call.input, call.input_stride, call.output, call.output_stride, call.scratch};
}

Product product_of(const Gated& call) {
    return {{&call.gate, &call.up}, 2,           call.activation,    call.input,
            call.input_stride,      call.output, call.output_stride, call.scratch};
}

constexpr long PHASES = 2;  // of a call, at the most

struct Job {
    const Call* const* calls;
    long count;
    Cut cut;
    Progress* progress;
    Seat* seats;

    void join_all(int thread) const {
        const Table table{seats, cut.threads, thread};
        for (long i = 0; i < count; ++i) join(calls[i], i * PHASES, table);
    }

   private:
    void join(const Call* call, long task, const Table& table) const {
        switch (call->operation) {
            case LINEAR: return multiply(product_of(*static_cast<const Linear*>(call)), task, table);
            case GATED: return multiply(product_of(*static_cast<const Gated*>(call)), task, table);
            case NORM: return compute_all<Norm>(call, task, table);
            case ROTATE: return compute_all<Rotate>(call, task, table);
            case WRITE: return compute_all<Write>(call, task, table);
            case ADD: return compute_all<Add>(call, task, table);
            case ATTEND: {
                const Attend& mine = *static_cast<const Attend*>(call);
                return share(task, table, parts(mine, cut), [&](long part) { compute(mine, cut, part, table.mine); });
            }
        }
    }

    void multiply(const Product& product, long task, const Table& table) const {
        const Matrix& weight = *product.weights[0];
        if (weight.format == BF16)
            return share(task, table, product_parts(product, cut), [&](long part) { ::multiply(product, cut, part); });
        share(task, table, rounding_parts(weight, cut), [&](long part) {
            round(weight, product.input, product.input_stride, product.scratch, cut, part);
        });
        share(task + 1, table, product_parts(product, cut), [&](long part) { multiply_quantized(product, cut, part); });
    }

    template <typename Kind>
    void compute_all(const Call* call, long task, const Table& table) const {
        const Kind& mine = *static_cast<const Kind*>(call);
        share(task, table, parts(mine, cut), [&](long part) { compute(mine, cut, part); });
    }

    template <typename Compute>
    void share(long task, const Table& table, long parts, const Compute& compute) const {
        progress[task].join(parts, table, task, compute);
    }
};

class Team {
   public:
    void run(const Job& job) {
        if (job.cut.threads == 1) return job.join_all(0);
        call_helpers(job.cut.threads - 1);
        job_ = job;
        number_ = number_ % (1 << 30) + 1;  // 0 is: there is none
        const int number = number_;
        open_.store(number);
        if (asleep_.load() > 0) syscall(SYS_futex, &open_, FUTEX_WAKE_PRIVATE, job.cut.threads - 1, nullptr, nullptr, 0);
        job.join_all(0);
        open_.store(0);
        for (int spins = 0; inside_.load() > 0; ++spins) spins < 2048 ? _mm_pause() : (void)sched_yield();
    }

   private:
    void call_helpers(int wanted) {
        try {
            while (helpers_ < wanted) {
                const int thread = helpers_ + 1;
                std::thread([this, thread] { help(thread); }).detach();
                helpers_ = thread;
            }
        } catch (const std::system_error&) {  // there is no memory for another one: it goes without
        }
    }

    void help(int thread) {
        for (int last = 0;;) {
            const int number = wait_for_another(last);
            inside_.fetch_add(1);
            // Not closed since: then it stays as it is while anybody is inside.
            if (open_.load() == number && thread < job_.cut.threads) job_.join_all(thread);
            inside_.fetch_sub(1);
            last = number;
        }
    }

    // Between two calls of a prompt there are a few microseconds of Python; between two steps there are hundreds, which
    // the core is better spent on something else.
    int wait_for_another(int last) {
        for (int spins = 0;; ++spins) {
            const int number = open_.load();
            if (number != 0 && number != last) return number;
            if (spins < 1500) {
                _mm_pause();
                continue;
            }
            asleep_.fetch_add(1);
            syscall(SYS_futex, &open_, FUTEX_WAIT_PRIVATE, number, nullptr, nullptr, 0);
            asleep_.fetch_sub(1);
        }
    }

    int helpers_ = 0, number_ = 0;
    Job job_{};
    alignas(64) std::atomic<int> open_{0};
    alignas(64) std::atomic<int> inside_{0};
    std::atomic<int> asleep_{0};
};

// Never deleted: helpers sleep on it until the process ends.
Team& team = *new Team;

}  // namespace

// One caller at a time.
extern "C" __attribute__((visibility("default"))) void inferapi_run(const Call* const* calls, int64_t count,
                                                                     int64_t rows, int64_t threads) {
    static std::vector<Progress>& progress = *new std::vector<Progress>;
    static std::vector<Seat>& seats = *new std::vector<Seat>;
    if (long(progress.size()) < count * PHASES) progress = std::vector<Progress>(count * PHASES);
    if (long(seats.size()) < threads) seats = std::vector<Seat>(threads);
    for (long i = 0; i < count * PHASES; ++i) {
        progress[i].taken.store(0, std::memory_order_relaxed);
        progress[i].done.store(0, std::memory_order_relaxed);
    }
    team.run({calls, count, {long(rows), int(threads)}, progress.data(), seats.data()});
}
