// The heart of products in bf16: a tile of rows against panels of 16 outputs, summed in float32 registers.
#pragma once

#include "fetch.hpp"
#include "vectors.hpp"

namespace dots {

// sums[row][panel] += the products of `pairs` pairs of numbers; a panel is [pairs][16][2].
template <int R, int P, typename Ahead = fetch::Nothing>
inline void add(const bf16* const (&rows)[R], const uint32_t* const (&panels)[P], long pairs, __m512 (&sums)[R][P],
                const Ahead& ahead = {}) {
    for (long k = 0; k < pairs; ++k) {
        ahead.fetch(k);
        __m512i w[P];
        for (int p = 0; p < P; ++p) w[p] = _mm512_loadu_si512(panels[p] + k * vectors::LANES);
        for (int r = 0; r < R; ++r) {
            const __m512i x = _mm512_set1_epi32(reinterpret_cast<const int32_t*>(rows[r])[k]);
            for (int p = 0; p < P; ++p) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], (__m512bh)w[p], (__m512bh)x);
        }
    }
}

}  // namespace dots
