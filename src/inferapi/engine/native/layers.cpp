// What stands between the matrix products: norms, rotary positions, sums.
#include <cmath>

#include "calls.hpp"

using vectors::LANES;

namespace {

// Small work is not worth a second thread.
long even_parts(long numbers, const Cut& cut) { return numbers > 4096 ? cut.threads : 1; }

}  // namespace

long parts(const Norm& call, const Cut& cut) { return even_parts(cut.rows * call.repeat * call.size, cut); }

long parts(const Rotate& call, const Cut& cut) {
    return even_parts(cut.rows * (call.query_heads + call.key_heads) * call.dim, cut);
}

long parts(const Add& call, const Cut& cut) { return even_parts(cut.rows * call.size, cut); }

void compute(const Norm& call, const Cut& cut, long part) {
    long begin, end;
    range(cut.rows * call.repeat, parts(call, cut), part, &begin, &end);
    for (long at = begin; at < end; ++at) {
        const bf16* from = call.input + at / call.repeat * call.row_stride + at % call.repeat * call.repeat_stride;
        bf16* to = call.output + at * call.size;
        __m512 squares = _mm512_setzero_ps();
        for (long i = 0; i < call.size; i += LANES) {
            const __m512 x = vectors::load(from + i, vectors::first(call.size - i));
            squares = _mm512_fmadd_ps(x, x, squares);
        }
        const float mean = _mm512_reduce_add_ps(squares) / float(call.size);
        const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + call.epsilon));
        const __m512 offset = _mm512_set1_ps(call.offset);
        for (long i = 0; i < call.size; i += LANES) {
            const __mmask16 mask = vectors::first(call.size - i);
            __m512 x = _mm512_mul_ps(vectors::load(from + i, mask), factor);
            // Where the weight is an offset from 1 (Gemma), models multiply in float32; else after rounding.
            if (call.offset == 0.0f) x = vectors::round_to_bf16(x);
            x = _mm512_mul_ps(x, _mm512_add_ps(vectors::load(call.weight + i, mask), offset));
            vectors::store(to + i, x, mask);
        }
    }
}

namespace {

void rotate_head(const bf16* from, const bf16* cosines, const bf16* sines, bf16* to, long dim) {
    const long half = dim / 2;
    for (long i = 0; i < half; i += LANES) {
        const __mmask16 mask = vectors::first(half - i);
        const __m512 low = vectors::load(from + i, mask), high = vectors::load(from + half + i, mask);
        const __m512 cos_low = vectors::load(cosines + i, mask), cos_high = vectors::load(cosines + half + i, mask);
        const __m512 sin_low = vectors::load(sines + i, mask), sin_high = vectors::load(sines + half + i, mask);
        // Rounded product by product, as the model's own code does it in bf16.
        const auto rounded = [](__m512 a, __m512 b) { return vectors::round_to_bf16(_mm512_mul_ps(a, b)); };
        vectors::store(to + i, _mm512_sub_ps(rounded(low, cos_low), rounded(high, sin_low)), mask);
        vectors::store(to + half + i, _mm512_add_ps(rounded(high, cos_high), rounded(low, sin_high)), mask);
    }
}

}  // namespace

void compute(const Rotate& call, const Cut& cut, long part) {
    const long heads = call.query_heads + call.key_heads;
    long begin, end;
    range(cut.rows * heads, parts(call, cut), part, &begin, &end);
    for (long at = begin; at < end; ++at) {
        const long row = at / heads, head = at % heads;
        const bf16 *cosines = call.cosines + row * call.angle_row, *sines = call.sines + row * call.angle_row;
        if (head < call.query_heads) {
            rotate_head(call.queries + row * call.query_row + head * call.query_head, cosines, sines,
                        call.rotated_queries + (row * call.query_heads + head) * call.dim, call.dim);
        } else {
            const long key = head - call.query_heads;
            rotate_head(call.keys + row * call.key_row + key * call.key_head, cosines, sines,
                        call.rotated_keys + (row * call.key_heads + key) * call.dim, call.dim);
        }
    }
}

void compute(const Add& call, const Cut& cut, long part) {
    long begin, end;
    range(cut.rows, parts(call, cut), part, &begin, &end);
    for (long row = begin; row < end; ++row) {
        const bf16 *left = call.left + row * call.size, *right = call.right + row * call.size;
        for (long i = 0; i < call.size; i += LANES) {
            const __mmask16 mask = vectors::first(call.size - i);
            const __m512 sum = _mm512_add_ps(vectors::load(left + i, mask), vectors::load(right + i, mask));
            vectors::store(call.output + row * call.size + i, sum, mask);
        }
    }
}
