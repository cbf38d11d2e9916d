// Attention over the paged cache, for tokens that decode and for prompts alike: each tile of consecutive tokens of one
// request reads the request's own blocks where they lie, once for all query heads that share a key head.
//
// The softmax is put together block by block (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022, algorithm 1).
// Keys and values are cached in the panels that the products read: of a block and head, keys are
// [block_tokens / 16][key_dim / 2][16][2], a lane a token, and values [value_dim / 16][block_tokens / 2][16][2].
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "calls.hpp"
#include "dots.hpp"

using vectors::LANES;

long parts(const Write&, const Cut& cut) { return cut.rows > 4 ? cut.threads : 1; }

void compute(const Write& call, const Cut& cut, long part) {
    const long pairs = call.key_dim / 2, token_pairs = call.block_tokens / 2;
    long begin, end;
    range(cut.rows, parts(call, cut), part, &begin, &end);
    for (long row = begin; row < end; ++row) {
        const long block = call.blocks[row], offset = call.offsets[row];
        // Half of a pair is read with weight 0 until it is written: what an earlier request left there may be a NaN.
        const bool is_last = row + 1 == cut.rows || call.blocks[row + 1] != block || call.offsets[row + 1] != offset + 1;
        const bool clears = offset % 2 == 0 && is_last;
        for (long head = 0; head < call.heads; ++head) {
            const long place = (block * call.heads + head) * call.block_tokens;
            const bf16* key = call.keys + row * call.key_row + head * call.key_head;
            bf16* to = call.cached_keys + place * call.key_dim + (offset / LANES * pairs * LANES + offset % LANES) * 2;
            for (long i = 0; i < pairs; ++i) std::memcpy(to + i * LANES * 2, key + i * 2, 2 * sizeof(bf16));
            const bf16* value = call.values + row * call.value_row + head * call.value_head;
            to = call.cached_values + place * call.value_dim;
            for (long i = 0; i < call.value_dim; ++i) {
                const long at = ((i / LANES * token_pairs + offset / 2) * LANES + i % LANES) * 2 + offset % 2;
                to[at] = value[i];
                if (clears) to[at + 1] = 0;
            }
        }
    }
}

namespace {

constexpr long MOST_ROWS = 48;  // of a tile: tokens times query heads
constexpr long BLOCK = 64;      // tokens
constexpr int PANELS = BLOCK / LANES;

// Where a block's keys and values of one head begin.
struct Place {
    const bf16 *keys, *values;

    Place(const Attend& call, long block, long head) {
        const long tokens = (block * call.heads + head) * BLOCK;
        keys = call.cached_keys + tokens * call.key_dim;
        values = call.cached_values + tokens * call.value_dim;
    }
};

// A tile at work, in a thread's scratch memory.
struct Tile {
    const Attend& call;
    long head, first_token, tokens, rows;
    float* scores;   // [rows][BLOCK]
    float* outputs;  // [rows][value_dim]
    float *peaks, *totals;
    bf16* weights;  // [rows][BLOCK]

    Tile(const Attend& call, long head, long first_token, long tokens, float* scratch)
        : call(call), head(head), first_token(first_token), tokens(tokens), rows(tokens * call.group) {
        scores = scratch;
        outputs = scores + MOST_ROWS * BLOCK;
        peaks = outputs + MOST_ROWS * call.value_dim;
        totals = peaks + MOST_ROWS;
        weights = reinterpret_cast<bf16*>(totals + MOST_ROWS);
        std::fill(outputs, outputs + rows * call.value_dim, 0.0f);
        std::fill(peaks, peaks + rows, -std::numeric_limits<float>::infinity());
        std::fill(totals, totals + rows, 0.0f);
    }

    const bf16* query(long row) const {
        return call.queries + (first_token + row / call.group) * call.query_row +
               (head * call.group + row % call.group) * call.query_head;
    }

    template <int R, int P, typename Ahead>
    void score(const uint32_t* keys, long row, const Ahead& ahead) const {
        const bf16* queries[R];
        const uint32_t* panels[P];
        for (int r = 0; r < R; ++r) queries[r] = query(row + r);
        for (int p = 0; p < P; ++p) panels[p] = keys + p * call.key_dim / 2 * LANES;
        __m512 sums[R][P];
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p) sums[r][p] = _mm512_setzero_ps();
        dots::add(queries, panels, call.key_dim / 2, sums, ahead);
        const __m512 scale = _mm512_set1_ps(call.scale * 1.44269504f);  // 1 / ln 2, for powers of two
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p)
                _mm512_storeu_ps(scores + (row + r) * BLOCK + p * LANES, _mm512_mul_ps(sums[r][p], scale));
    }

    template <int R, int P, typename Ahead = fetch::Nothing>
    void weigh(const uint32_t* values, long row, long panel, long pairs, const Ahead& ahead = {}) const {
        const bf16* mine[R];
        const uint32_t* panels[P];
        for (int r = 0; r < R; ++r) mine[r] = weights + (row + r) * BLOCK;
        for (int p = 0; p < P; ++p) panels[p] = values + (panel + p) * BLOCK / 2 * LANES;
        __m512 sums[R][P];
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p)
                sums[r][p] = _mm512_loadu_ps(outputs + (row + r) * call.value_dim + (panel + p) * LANES);
        dots::add(mine, panels, pairs, sums, ahead);
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p)
                _mm512_storeu_ps(outputs + (row + r) * call.value_dim + (panel + p) * LANES, sums[r][p]);
    }

    // Scores of row `row` become weights. Its token sees the block's tokens from `begin` to before `end`.
    void soften(long row, long begin, long end, int panels) const {
        if (begin <= 0 && end >= panels * LANES) {
            weigh_scores<true>(row, begin, end, panels);
        } else {
            weigh_scores<false>(row, begin, end, panels);
        }
    }

    // Powers of two: the scores were scaled for it.
    template <bool ALL>
    void weigh_scores(long row, long begin, long end, int panels) const {
        const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        __mmask16 seen[PANELS];
        __m512 x[PANELS], peak = nothing;
        for (int p = 0; p < panels; ++p) {
            x[p] = _mm512_loadu_ps(scores + row * BLOCK + p * LANES);
            if (!ALL) {
                const long from = begin - p * LANES, to = end - p * LANES;
                seen[p] = from >= LANES || to <= 0
                              ? 0
                              : __mmask16(vectors::first(to) & ~(from > 0 ? vectors::first(from) : 0));
                x[p] = _mm512_mask_mov_ps(nothing, seen[p], x[p]);
            }
            peak = _mm512_max_ps(peak, x[p]);
        }
        const float before = peaks[row], now = std::max(before, _mm512_reduce_max_ps(peak));
        bf16* to = weights + row * BLOCK;
        if (!ALL && now == -std::numeric_limits<float>::infinity()) {  // it sees nothing of this block, nor of any before
            for (int p = 0; p < panels; ++p) vectors::store(to + p * LANES, _mm512_setzero_ps());
            return;
        }
        __m512 total = _mm512_setzero_ps();
        for (int p = 0; p < panels; ++p) {
            __m512 weight = vectors::exp2(_mm512_sub_ps(x[p], _mm512_set1_ps(now)));
            if (!ALL) weight = _mm512_maskz_mov_ps(seen[p], weight);
            total = _mm512_add_ps(total, weight);
            vectors::store(to + p * LANES, weight);
        }
        if (now == before) {
            totals[row] += _mm512_reduce_add_ps(total);
            return;
        }
        const float fade = std::exp2(before - now);
        totals[row] = totals[row] * fade + _mm512_reduce_add_ps(total);
        peaks[row] = now;
        float* output = outputs + row * call.value_dim;
        for (long i = 0; i < call.value_dim; i += LANES)
            _mm512_storeu_ps(output + i, _mm512_mul_ps(_mm512_loadu_ps(output + i), _mm512_set1_ps(fade)));
    }

    // The first rows of a tile fetch: its values while they are scored, the keys to come while they weigh.
    template <int R>
    void attend_rows(const Place& at, const bf16* next_keys, long row, long base, long seen) const {
        const auto* keys = reinterpret_cast<const uint32_t*>(at.keys);
        const auto* values = reinterpret_cast<const uint32_t*>(at.values);
        const int panels = seen > 2 * LANES ? 4 : seen > LANES ? 2 : 1;
        if (panels == 4) {
            row == 0 ? score<R, 4>(keys, row, quarters(at.values, call.value_dim)) : score<R, 4>(keys, row, fetch::Nothing{});
        } else if (panels == 2) {
            score<R, 2>(keys, row, fetch::Nothing{});
        } else {
            score<R, 1>(keys, row, fetch::Nothing{});
        }
        for (int r = 0; r < R; ++r) {
            const long token = first_token + (row + r) / call.group;
            soften(row + r, call.firsts[token] - base, call.lengths[token] - base, panels);
        }
        const long wide = call.value_dim / LANES, pairs = (seen + 1) / 2;
        long panel = 0;
        if (row == 0 && next_keys != nullptr && wide >= 4) {
            weigh<R, 4>(values, row, panel, pairs, quarters(next_keys, call.key_dim));
            panel += 4;
        }
        for (; panel + 4 <= wide; panel += 4) weigh<R, 4>(values, row, panel, pairs);
        for (; panel < wide; ++panel) weigh<R, 1>(values, row, panel, pairs);
    }

    // A block's numbers of one head, `dim` a token.
    static fetch::Lines<4> quarters(const bf16* numbers, long dim) {
        const auto quarter = [&](long n) { return reinterpret_cast<const char*>(numbers + n * BLOCK * dim / 4); };
        return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
    }

    // `next_keys`: those that the thread reads after this tile's, or null.
    void run(const bf16* next_keys) const {
        const int32_t* blocks = call.table + call.table_starts[first_token];
        const long first = call.firsts[first_token], length = call.lengths[first_token + tokens - 1];
        for (long base = first / BLOCK * BLOCK; base < length; base += BLOCK) {
            const Place at(call, blocks[base / BLOCK], head);
            const bf16* next = base + BLOCK < length ? Place(call, blocks[base / BLOCK + 1], head).keys : next_keys;
            const long seen = std::min(length - base, BLOCK);
            for (long row = 0; row < rows;) {
                switch (std::min(rows - row, 6L)) {
                    case 6: attend_rows<6>(at, next, row, base, seen); row += 6; break;
                    case 5: attend_rows<5>(at, next, row, base, seen); row += 5; break;
                    case 4: attend_rows<4>(at, next, row, base, seen); row += 4; break;
                    case 3: attend_rows<3>(at, next, row, base, seen); row += 3; break;
                    case 2: attend_rows<2>(at, next, row, base, seen); row += 2; break;
                    default: attend_rows<1>(at, next, row, base, seen); row += 1; break;
                }
            }
        }
        for (long row = 0; row < rows; ++row) {
            const __m512 inverse = _mm512_set1_ps(1.0f / totals[row]);
            bf16* to = call.output + ((first_token + row / call.group) * call.heads * call.group +
                                      head * call.group + row % call.group) * call.value_dim;
            for (long i = 0; i < call.value_dim; i += LANES)
                vectors::store(to + i, _mm512_mul_ps(_mm512_loadu_ps(outputs + row * call.value_dim + i), inverse));
        }
    }
};

}  // namespace

long parts(const Attend& call, const Cut&) { return *call.tile_count * call.heads; }

void compute(const Attend& call, const Cut& cut, long part, int thread) {
    const long tile = part / call.heads, begin = call.tiles[tile], end = call.tiles[tile + 1];
    const long later = part + cut.threads;  // this thread's next part, if all are as long
    const bf16* next_keys = nullptr;
    if (later < parts(call, cut)) {
        const long token = call.tiles[later / call.heads];
        const int32_t* blocks = call.table + call.table_starts[token];
        next_keys = Place(call, blocks[call.firsts[token] / BLOCK], later % call.heads).keys;
    }
    Tile(call, part % call.heads, begin, end - begin, call.scratch + thread * call.scratch_floats).run(next_keys);
}
