#include "kernels.h"
#include "layer_norm.h"

#ifdef LLAMAVID_X86

#include <immintrin.h>

#include <cmath>

#include "levels.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 means its own header, bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

namespace llamavid {
namespace {

constexpr size_t kLanes = 16;

AVX512 inline __mmask16 lanes_of(size_t width, size_t at) {
    return static_cast<__mmask16>(width - at < kLanes ? (1u << (width - at)) - 1 : 0xffffu);
}

// Adds the row up, into `row.sum` where there is something to add; the rows' numbers from now on.
AVX512 const float *added_up(const NormRow &row, size_t width, float *total) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t at = 0; at < width; at += kLanes) {
        const __mmask16 lanes = lanes_of(width, at);
        __m512 x = _mm512_maskz_loadu_ps(lanes, row.x + at);
        if (row.added) {
            x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes, row.added + at));
            _mm512_mask_storeu_ps(row.sum + at, lanes, x);
        }
        sum = _mm512_add_ps(sum, x);
    }
    *total = _mm512_reduce_add_ps(sum);
    return row.added ? row.sum : row.x;
}

AVX512 float squares(const float *x, size_t width, float mean) {
    const __m512 middle = _mm512_set1_ps(mean);
    __m512 sum = _mm512_setzero_ps();
    for (size_t at = 0; at < width; at += kLanes) {
        const __mmask16 lanes = lanes_of(width, at);
        const __m512 off = _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, x + at), middle);
        sum = _mm512_fmadd_ps(off, off, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

}  // namespace

AVX512 void normalize(const LayerNorm &norm, const NormRow &row) {
    const auto width = static_cast<float>(norm.width);
    float total = 0;
    const float *x = added_up(row, norm.width, &total);
    const float mean = total / width;
    const float factor = 1 / std::sqrt(squares(x, norm.width, mean) / width + norm.epsilon);
    for (size_t at = 0; at < norm.width; at += kLanes) {
        const __mmask16 lanes = lanes_of(norm.width, at);
        __m512 y = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + at), _mm512_set1_ps(mean));
        y = _mm512_mul_ps(y, _mm512_set1_ps(factor));
        y = _mm512_fmadd_ps(y, _mm512_maskz_loadu_ps(lanes, norm.weight + at),
                            _mm512_maskz_loadu_ps(lanes, norm.bias + at));
        if (row.y) _mm512_mask_storeu_ps(row.y + at, lanes, y);
        if (!row.levels) continue;
        _mm512_mask_cvtepi32_storeu_epi8(row.levels + at, lanes, to_levels(y, norm.levels_per_1));
    }
}

}  // namespace llamavid

#endif
