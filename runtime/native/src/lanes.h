// Rows of float32 to lanes of AVX-512 and back: number d of sixteen rows becomes one vector. Knows nothing
// of heads; x86 only, and only `attention_avx512.cpp` reads it.

#ifndef LLAMAVID_LANES_H
#define LLAMAVID_LANES_H

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "levels.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 means its own header, bug 105593
#endif

// By function, not by file, as in kernels_avx2.cpp. The names are some of those that `runs_avx512` asks for.
#define ATTENTION_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl")))

namespace llamavid {

constexpr size_t kLanes = 16;

// [4, 16] from sixteen rows of four, and back: quarter j of vector i is row i + 4j.
struct Four {
    __m512 a, b, c, d;
};

ATTENTION_AVX512 inline Four transposed(const Four &in) {
    const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(in.a, in.b));
    const __m512d AB = _mm512_castps_pd(_mm512_unpackhi_ps(in.a, in.b));
    const __m512d cd = _mm512_castps_pd(_mm512_unpacklo_ps(in.c, in.d));
    const __m512d CD = _mm512_castps_pd(_mm512_unpackhi_ps(in.c, in.d));
    return {_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(AB, CD)), _mm512_castpd_ps(_mm512_unpackhi_pd(AB, CD))};
}

// Rows i, i + 4, i + 8 and i + 12, four numbers of each.
ATTENTION_AVX512 inline __m512 quarters(const float *const rows[kLanes], size_t i, size_t at) {
    __m512 all = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + at));
    all = _mm512_insertf32x4(all, _mm_loadu_ps(rows[i + 4] + at), 1);
    all = _mm512_insertf32x4(all, _mm_loadu_ps(rows[i + 8] + at), 2);
    return _mm512_insertf32x4(all, _mm_loadu_ps(rows[i + 12] + at), 3);
}

// Number d of a bias in all lanes; 0 where there is none.
ATTENTION_AVX512 inline __m512 everywhere(const float *bias, size_t d) {
    return bias ? _mm512_set1_ps(bias[d]) : _mm512_setzero_ps();
}

ATTENTION_AVX512 inline __m512 scaled(__m512 lanes, const float *bias, size_t d, __m512 scale) {
    return _mm512_mul_ps(_mm512_add_ps(lanes, everywhere(bias, d)), scale);
}

// Up to sixteen rows [width], with a bias, times `scale`, to `to` [width, stride]; empty lanes repeat the
// last row.
ATTENTION_AVX512 inline void rows_to_lanes(const float *from, size_t row_stride, size_t count, size_t width,
                                           const float *bias, __m512 scale, float *to, size_t stride) {
    const float *rows[kLanes];
    for (size_t i = 0; i < kLanes; ++i) rows[i] = from + std::min(i, count - 1) * row_stride;
    for (size_t d = 0; d < width; d += 4, to += 4 * stride) {
        const Four turned = transposed({quarters(rows, 0, d), quarters(rows, 1, d), quarters(rows, 2, d),
                                        quarters(rows, 3, d)});
        _mm512_store_ps(to, scaled(turned.a, bias, d, scale));
        _mm512_store_ps(to + stride, scaled(turned.b, bias, d + 1, scale));
        _mm512_store_ps(to + 2 * stride, scaled(turned.c, bias, d + 2, scale));
        _mm512_store_ps(to + 3 * stride, scaled(turned.d, bias, d + 3, scale));
    }
}

// Where lanes go: rows of floats, or of levels (Note [Levels] of int8_product.h).
struct RowsOut {
    float *floats;  // or null
    uint8_t *levels;
    size_t stride;
    const float *bias;  // added first; or null
    float levels_per_1;
};

// Their bits, to be turned like numbers.
ATTENTION_AVX512 inline Four levels_of(const Four &x, float levels_per_1) {
    return {_mm512_castsi512_ps(to_levels(x.a, levels_per_1)), _mm512_castsi512_ps(to_levels(x.b, levels_per_1)),
            _mm512_castsi512_ps(to_levels(x.c, levels_per_1)), _mm512_castsi512_ps(to_levels(x.d, levels_per_1))};
}

// And back: lanes [width, stride], times `scale`, to up to sixteen rows.
ATTENTION_AVX512 inline void lanes_to_rows(const float *from, size_t stride, __m512 scale, size_t width,
                                           const RowsOut &to, size_t count) {
    alignas(64) float four[4][kLanes];
    for (size_t d = 0; d < width; d += 4, from += 4 * stride) {
        Four lanes{_mm512_fmadd_ps(_mm512_load_ps(from), scale, everywhere(to.bias, d)),
                   _mm512_fmadd_ps(_mm512_load_ps(from + stride), scale, everywhere(to.bias, d + 1)),
                   _mm512_fmadd_ps(_mm512_load_ps(from + 2 * stride), scale, everywhere(to.bias, d + 2)),
                   _mm512_fmadd_ps(_mm512_load_ps(from + 3 * stride), scale, everywhere(to.bias, d + 3))};
        if (!to.floats) lanes = levels_of(lanes, to.levels_per_1);
        const Four turned = transposed(lanes);
        _mm512_store_ps(four[0], turned.a);
        _mm512_store_ps(four[1], turned.b);
        _mm512_store_ps(four[2], turned.c);
        _mm512_store_ps(four[3], turned.d);
        for (size_t i = 0; i < std::min(count, kLanes); ++i) {
            const __m128 row = _mm_load_ps(four[i % 4] + i / 4 * 4);
            if (to.floats) {
                _mm_storeu_ps(to.floats + i * to.stride + d, row);
            } else {
                const int32_t bytes = _mm_cvtsi128_si32(_mm_cvtepi32_epi8(_mm_castps_si128(row)));
                std::memcpy(to.levels + i * to.stride + d, &bytes, sizeof bytes);
            }
        }
    }
}

}  // namespace llamavid

#endif
