// Sixteen numbers at a time: conversions between bf16 and float, sums, exp. AVX-512 with its BF16 and VNNI parts.
#pragma once

#include <immintrin.h>

#include <cstdint>

using bf16 = uint16_t;  // the upper half of a float

namespace vectors {

constexpr int LANES = 16;

inline __mmask16 first(long count) {
    return count >= LANES ? __mmask16(0xFFFF) : __mmask16((1u << count) - 1);
}

inline __m512 widen(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

inline __m512 load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

inline __m512 load(const bf16* from, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, from)); }

inline void store(bf16* to, __m512 numbers, __mmask16 mask = 0xFFFF) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(numbers));
}

inline float widen(bf16 number) {
    union {
        uint32_t bits;
        float value;
    } both = {uint32_t(number) << 16};
    return both.value;
}

inline __m512 round_to_bf16(__m512 numbers) { return widen((__m256i)_mm512_cvtneps_pbh(numbers)); }

// 2 to the power of x: a polynomial of degree 4 on what rounding x leaves, least squares at Chebyshev's points; it is off
// by three parts in a million, where weights of attention are rounded to eight bits.
inline __m512 exp2(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, 0);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.6003953367e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5916894227e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4023719132e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9312196970e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

// 1 / (1 + e^-x). The reciprocal's 14 bits become 28 in one step of Newton's.
inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 t = _mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)), _mm512_set1_ps(126.0f));
    const __m512 d = _mm512_add_ps(one, exp2(t));
    const __m512 r = _mm512_rcp14_ps(d);
    return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(d, r, one), r);
}

}  // namespace vectors
