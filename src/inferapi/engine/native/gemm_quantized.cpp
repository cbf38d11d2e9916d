// Products with int8 and int4 weights and inputs that are rounded to int8 in groups, each group with a scale.
//
// A weight is scale * number + minimum within a group of 64 (int8) or 32 (int4) inputs, as in llama.cpp's Q4_1.
// Panels of 16 outputs: int8 [panel][inputs / 4][16][4], a byte is the number + 128 and the minimum -128 * scale;
// int4 [panel][inputs / 8][16][4], the low half of a byte for the first four of eight inputs. Scales [panel][group][16].
#include <algorithm>
#include <cmath>

#include "gemm.hpp"

namespace {

using vectors::LANES;

constexpr long INPUT_ALIGN = 64;

// The inputs as int8: numbers, a scale a group, and the group's sum times the scale.
struct Rounded {
    int8_t* numbers;  // [rows][padded]
    float* scales;    // [rows][groups]
    float* sums;      // [rows][groups]
    long padded, groups, group_size;

    Rounded(void* scratch, long rows, long inputs, long group) : group_size(group) {
        padded = (inputs + INPUT_ALIGN - 1) / INPUT_ALIGN * INPUT_ALIGN;
        groups = padded / group;
        scales = static_cast<float*>(scratch);
        sums = scales + rows * groups;
        numbers = reinterpret_cast<int8_t*>(sums + rows * groups);
    }

    void fill(const bf16* input, long stride, long inputs, long begin, long end) const {
        for (long at = begin; at < end; ++at) {
            const long row = at / groups, group = at % groups, start = group * group_size;
            const bf16* from = input + row * stride + start;
            __m512 x[4];
            __m512 peak = _mm512_setzero_ps();
            const int vectors_each = int(group_size / LANES);
            for (int i = 0; i < vectors_each; ++i) {
                const long left = inputs - start - i * LANES;
                x[i] = left > 0 ? vectors::load(from + i * LANES, vectors::first(left)) : _mm512_setzero_ps();
                peak = _mm512_max_ps(peak, _mm512_abs_ps(x[i]));
            }
            const float scale = _mm512_reduce_max_ps(peak) / 127.0f;
            const __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0.0f);
            __m512i total = _mm512_setzero_si512();
            for (int i = 0; i < vectors_each; ++i) {
                const __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
                total = _mm512_add_epi32(total, n);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + row * padded + start + i * LANES),
                                 _mm512_cvtsepi32_epi8(n));
            }
            scales[at] = scale;
            sums[at] = scale * float(_mm512_reduce_add_epi32(total));
        }
    }
};

template <int64_t F, int COUNT>
struct Tile {
    static constexpr long GROUP = F == INT8 ? 64 : 32;
    static constexpr long GROUP_BYTES = GROUP * LANES / (F == INT8 ? 1 : 2);

    const Product& product;
    Rounded input;

    template <int R, int WIDE>
    __attribute__((noinline)) void run(long row, long panel, const fetch::Piece& piece) const {
        const auto address = [&](int p, long first) {
            const Matrix& weight = *product.weights[p / WIDE];
            return static_cast<const uint8_t*>(weight.numbers) + (first + p % WIDE) * input.groups * GROUP_BYTES;
        };
        fetch::share<COUNT * WIDE>(piece, address, [&](const auto& ahead) { run<R, WIDE>(row, panel, ahead); });
    }

    template <int R, int WIDE, typename Ahead>
    __attribute__((always_inline)) void run(long row, long panel, const Ahead& ahead) const {
        constexpr int P = COUNT * WIDE;
        const long groups = input.groups;
        const uint8_t* numbers[P];
        const float* scales8[P];
        const uint16_t *scales4[P], *minima[P];
        for (int p = 0; p < P; ++p) {
            const Matrix& weight = *product.weights[p / WIDE];
            const long at = (panel + p % WIDE) * groups;
            numbers[p] = static_cast<const uint8_t*>(weight.numbers) + at * GROUP_BYTES;
            scales8[p] = static_cast<const float*>(weight.scales) + at * LANES;
            scales4[p] = static_cast<const uint16_t*>(weight.scales) + at * LANES;
            minima[p] = static_cast<const uint16_t*>(weight.minima) + at * LANES;
        }
        const int32_t* rows[R];
        for (int r = 0; r < R; ++r) rows[r] = reinterpret_cast<const int32_t*>(input.numbers + (row + r) * input.padded);
        __m512 sums[R][P];
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p) sums[r][p] = _mm512_setzero_ps();
        for (long g = 0; g < groups; ++g) {
            __m512i dots[R][P];
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) dots[r][p] = _mm512_setzero_si512();
            if (F == INT8) {
                for (int k = 0; k < 16; ++k) {
                    ahead.fetch(g * 16 + k);
                    __m512i w[P];
                    for (int p = 0; p < P; ++p) w[p] = _mm512_loadu_si512(numbers[p] + g * GROUP_BYTES + k * 64);
                    for (int r = 0; r < R; ++r) {
                        const __m512i x = _mm512_set1_epi32(rows[r][g * 16 + k]);
                        for (int p = 0; p < P; ++p) dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], w[p], x);
                    }
                }
            } else {
                const __m512i low = _mm512_set1_epi8(15);
                for (int k = 0; k < 4; ++k) {
                    ahead.fetch(g * 4 + k);
                    __m512i w[P], v[P];
                    for (int p = 0; p < P; ++p) {
                        const __m512i both = _mm512_loadu_si512(numbers[p] + g * GROUP_BYTES + k * 64);
                        w[p] = _mm512_and_si512(both, low);
                        v[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                    }
                    for (int r = 0; r < R; ++r) {
                        const __m512i x = _mm512_set1_epi32(rows[r][g * 8 + 2 * k]);
                        const __m512i y = _mm512_set1_epi32(rows[r][g * 8 + 2 * k + 1]);
                        for (int p = 0; p < P; ++p) dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], w[p], x);
                        for (int p = 0; p < P; ++p) dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], v[p], y);
                    }
                }
            }
            for (int p = 0; p < P; ++p) {
                __m512 scale, minimum;
                if (F == INT8) {
                    scale = _mm512_loadu_ps(scales8[p] + g * LANES);
                    minimum = _mm512_mul_ps(scale, _mm512_set1_ps(-128.0f));
                } else {
                    scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales4[p] + g * LANES)));
                    minimum = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(minima[p] + g * LANES)));
                }
                for (int r = 0; r < R; ++r) {
                    const long at = (row + r) * groups + g;
                    const __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[r][p]), _mm512_set1_ps(input.scales[at]));
                    sums[r][p] = _mm512_fmadd_ps(dot, scale, sums[r][p]);
                    sums[r][p] = _mm512_fmadd_ps(_mm512_set1_ps(input.sums[at]), minimum, sums[r][p]);
                }
            }
        }
        gemm::finish<R, P>(product, sums, row, panel);
    }
};

long group_size(const Matrix& weight) { return weight.format == INT8 ? 64 : 32; }

template <int64_t F>
void with_format(const Product& product, const Cut& cut, long part) {
    const Matrix& weight = *product.weights[0];
    const Rounded rounded(product.scratch, cut.rows, weight.inputs, group_size(weight));
    if (product.count == 1) {
        gemm::compute<2>(Tile<F, 1>{product, rounded}, product, cut, part);
    } else {
        gemm::compute<1>(Tile<F, 2>{product, rounded}, product, cut, part);
    }
}

}  // namespace

long rounding_parts(const Matrix&, const Cut& cut) { return cut.rows > 4 ? cut.threads : 1; }

void round(const Matrix& weight, const bf16* input, long input_stride, void* scratch, const Cut& cut, long part) {
    const Rounded rounded(scratch, cut.rows, weight.inputs, group_size(weight));
    long begin, end;
    range(cut.rows * rounded.groups, rounding_parts(weight, cut), part, &begin, &end);
    rounded.fill(input, input_stride, weight.inputs, begin, end);
}

void multiply_quantized(const Product& product, const Cut& cut, long part) {
    if (product.weights[0]->format == INT8) {
        with_format<INT8>(product, cut, part);
    } else {
        with_format<INT4>(product, cut, part);
    }
}
