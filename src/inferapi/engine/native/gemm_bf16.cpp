// Products with bf16 weights: panels of 16 outputs, [panel][inputs / 2][16][2], float32 sums.
#include "dots.hpp"
#include "gemm.hpp"

namespace {

using vectors::LANES;

template <int COUNT>  // 2: a gate and what it gates
struct Tile {
    const Product& product;

    template <int R, int WIDE>
    __attribute__((noinline)) void run(long row, long panel, const fetch::Piece& piece) const {
        constexpr int P = COUNT * WIDE;
        const long pairs = product.weights[0]->inputs / 2;
        const auto address = [&](int p, long first) {
            const Matrix& weight = *product.weights[p / WIDE];
            return static_cast<const uint32_t*>(weight.numbers) + (first + p % WIDE) * pairs * LANES;
        };
        const uint32_t* numbers[P];
        for (int p = 0; p < P; ++p) numbers[p] = address(p, panel);
        const bf16* rows[R];
        for (int r = 0; r < R; ++r) rows[r] = product.input + (row + r) * product.input_stride;
        __m512 sums[R][P];
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p) sums[r][p] = _mm512_setzero_ps();
        fetch::share<P>(piece, address, [&](const auto& ahead) { dots::add(rows, numbers, pairs, sums, ahead); });
        gemm::finish<R, P>(product, sums, row, panel);
    }
};

}  // namespace

void multiply(const Product& product, const Cut& cut, long part) {
    if (product.count == 1) {
        gemm::compute<4>(Tile<1>{product}, product, cut, part);
    } else {
        gemm::compute<2>(Tile<2>{product}, product, cut, part);
    }
}

long product_parts(const Product& product, const Cut& cut) {
    const gemm::Cutting cutting(product, cut);
    return cutting.panel_parts * cutting.row_parts;
}
