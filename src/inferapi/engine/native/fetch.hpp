// Weights on their way into the cache while others are multiplied.
//
// A step reads all weights from memory. The processor's own prefetching keeps up with the first rows that a panel meets
// and has nothing to do during the others, so that reading and computing take turns. Asked line by line for the panels
// that come next, memory works all the time: at 16 rows a quarter less time in all, at 32 a sixth.
#pragma once

#include <immintrin.h>

namespace fetch {

constexpr long LINE_BYTES = 64;

// One line of each run for every line of a panel that is computed.
template <int RUNS>
struct Lines {
    const char* runs[RUNS];

    void fetch(long line) const {
        for (int i = 0; i < RUNS; ++i) _mm_prefetch(runs[i] + line * LINE_BYTES, _MM_HINT_T1);
    }
};

struct Nothing {
    void fetch(long) const {}
};

// A block of rows is computed in pieces, each against the same panels.
struct Piece {
    long number, count;
    long next;  // the first of the panels to come, or -1
};

// Calls compute(ahead) with this piece's share of the P panels to come: one of them, or two while pieces are fewer, or
// none once earlier pieces have fetched them all. address(p, panel) is where the p'th of those from `panel` on begins.
template <int P, typename Address, typename Compute>
inline void share(const Piece& piece, const Address& address, const Compute& compute) {
    const bool are_few = piece.count < P;
    const long begin = are_few ? P * piece.number / piece.count : piece.number;
    const long end = are_few ? P * (piece.number + 1) / piece.count : begin + (piece.number < P);
    const auto bytes = [&](long p) { return reinterpret_cast<const char*>(address(int(p), piece.next)); };
    if (piece.next < 0 || begin == end) {
        compute(Nothing{});
    } else if (end == begin + 1) {
        compute(Lines<1>{{bytes(begin)}});
    } else {
        compute(Lines<2>{{bytes(begin), bytes(begin + 1)}});
    }
}

}  // namespace fetch
