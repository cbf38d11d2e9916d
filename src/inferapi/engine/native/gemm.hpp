// What the matrix products share: what is done with sixteen finished outputs, and how rows and panels are cut.
//
// A weight is cut in panels of 16 outputs, a lane of a register each. One input number, or the few that one
// instruction takes, is broadcast to all lanes, so that nothing is ever summed across a register.
#pragma once

#include <algorithm>

#include "calls.hpp"
#include "fetch.hpp"

namespace gemm {

constexpr int ROWS = 6;  // of a register tile

inline __m512 activated(int64_t activation, __m512 x) {
    if (activation == SILU) return _mm512_mul_ps(x, vectors::sigmoid(x));
    // tanh(u) = 2 sigmoid(2u) - 1, so GELU's tanh form is x * sigmoid(2u)
    const __m512 cubic = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 u = _mm512_fmadd_ps(cubic, _mm512_set1_ps(0.044715f), x);
    return _mm512_mul_ps(x, vectors::sigmoid(_mm512_mul_ps(u, _mm512_set1_ps(1.5957691216f))));
}

inline __m512 biased(const Matrix& weight, long output, __mmask16 mask, __m512 sum) {
    return weight.bias ? _mm512_add_ps(sum, vectors::load(weight.bias + output, mask)) : sum;
}

// `sums[row][panel]` to the output. With a gate, the first half of the panels are the gate's, the others the up's.
template <int R, int P>
inline void finish(const Product& product, const __m512 (&sums)[R][P], long row, long panel) {
    constexpr int W = vectors::LANES;
    const int wide = product.count == 1 ? P : P / 2;
    const Matrix &first = *product.weights[0], &second = *product.weights[product.count - 1];
    for (int p = 0; p < wide; ++p) {
        const long column = (panel + p) * W;
        const __mmask16 mask = vectors::first(first.outputs - column);
        for (int r = 0; r < R; ++r) {
            __m512 sum = biased(first, column, mask, sums[r][p]);
            if (product.count == 2) {
                // As the model itself would: each product is rounded to its dtype.
                const __m512 up = vectors::round_to_bf16(biased(second, column, mask, sums[r][(p + wide) % P]));
                sum = vectors::round_to_bf16(activated(product.activation, vectors::round_to_bf16(sum)));
                sum = _mm512_mul_ps(sum, up);
            }
            vectors::store(product.output + (row + r) * product.output_stride + column, sum, mask);
        }
    }
}

// How a product is cut: few panels and all rows where there are few of these, so that no thread is idle at the end;
// more panels at a time, for the registers' sake, and blocks of rows where there are many.
struct Cutting {
    static constexpr long MOST_PANELS = 32;  // the last part of a large product is not waited for long

    long panels, panels_each, panel_parts, row_parts;

    Cutting(const Product& product, const Cut& cut) {
        panels = (product.weights[0]->outputs + vectors::LANES - 1) / vectors::LANES;
        const long least = (cut.rows > 8 ? 4 : 2) / product.count;
        panels_each = std::min(std::max(least, panels / (cut.threads * 8) / least * least), MOST_PANELS);
        panel_parts = (panels + panels_each - 1) / panels_each;
        row_parts = cut.rows > 12 ? std::max(2L, cut.rows / 48) : 1;
    }
};

// Calls tile.run<R, P>(row, panel, piece): P panels at a time, or what is left, R rows at a time, as even as they come.
template <int P, typename Tile>
inline void by_rows(const Tile& tile, long begin, long end, long panel, long panels) {
    fetch::Piece piece{0, (end - begin + ROWS - 1) / ROWS, panel + 2 * P <= panels ? panel + P : -1};
    for (long row = begin; piece.number < piece.count; ++piece.number) {
        const long next = begin + (end - begin) * (piece.number + 1) / piece.count;
        switch (next - row) {
            case 6: tile.template run<6, P>(row, panel, piece); break;
            case 5: tile.template run<5, P>(row, panel, piece); break;
            case 4: tile.template run<4, P>(row, panel, piece); break;
            case 3: tile.template run<3, P>(row, panel, piece); break;
            case 2: tile.template run<2, P>(row, panel, piece); break;
            default: tile.template run<1, P>(row, panel, piece); break;
        }
        row = next;
    }
}

// One part of a product; tiles are up to `MOST` panels wide.
template <int MOST, typename Tile>
inline void compute(const Tile& tile, const Product& product, const Cut& cut, long part) {
    const Cutting cutting(product, cut);
    long begin, end;
    range(cut.rows, cutting.row_parts, part % cutting.row_parts, &begin, &end);
    long panel = part / cutting.row_parts * cutting.panels_each;
    const long last = std::min(panel + cutting.panels_each, cutting.panels);
    while (panel < last) {
        if (MOST >= 4 && last - panel >= 4) {
            by_rows<MOST >= 4 ? 4 : 1>(tile, begin, end, panel, cutting.panels);
            panel += 4;
        } else if (MOST >= 2 && last - panel >= 2) {
            by_rows<MOST >= 2 ? 2 : 1>(tile, begin, end, panel, cutting.panels);
            panel += 2;
        } else {
            by_rows<1>(tile, begin, end, panel, cutting.panels);
            panel += 1;
        }
    }
}

}  // namespace gemm
