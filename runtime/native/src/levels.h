// Numbers to the levels of the next int8 product, sixteen at a time: Note [Levels] of int8_product.h. Included
// by files that have made sure of an x86.

#ifndef LLAMAVID_LEVELS_H
#define LLAMAVID_LEVELS_H

#include <immintrin.h>

#include "int8_tile.h"

namespace llamavid {

// Round to nearest, ties to even, as QuantizeLinear; what is no number becomes the last level.
__attribute__((target("avx512f"))) inline __m512i to_levels(__m512 x, float levels_per_1) {
    x = _mm512_mul_ps(x, _mm512_set1_ps(levels_per_1));
    x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(127)), _mm512_set1_ps(-128));
    return _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(kZeroLevel));
}

}  // namespace llamavid

#endif
