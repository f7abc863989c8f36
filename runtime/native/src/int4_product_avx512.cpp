// AVX-512 with VNNI: sixteen columns' four products of a row are added up in one instruction.

#include "int4_tile.h"
#include "kernels.h"

#ifdef LLAMAVID_X86

#include <cstring>

#include "vnni.h"

namespace llamavid {
namespace {

constexpr size_t kLanes = 16;
constexpr float kLargestLevel = 127;
constexpr float kSmallest = 0x1p-120f;  // a block below it counts as zeros: 127 over it would be infinite
constexpr size_t kAhead = 8192;  // bytes: what memory brings while as many are multiplied

AVX512 inline void add_row(Sums &sums, const int8_t *levels, const Sums &weights) {
    int32_t four;
    std::memcpy(&four, levels, sizeof four);
    const __m512i everywhere = _mm512_set1_epi32(four);
    add_four(sums.a, weights.a, everywhere);
    add_four(sums.b, weights.b, everywhere);
    add_four(sums.c, weights.c, everywhere);
    add_four(sums.d, weights.d, everywhere);
}

AVX512 inline Sums everywhere(int32_t number) {
    const __m512i same = _mm512_set1_epi32(number);
    return {same, same, same, same};
}

AVX512 inline void finish_lanes(__m512i sums, __m512 row_scale, const float *column_scales, float *to) {
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(column_scales));
    _mm512_storeu_ps(to, _mm512_fmadd_ps(scaled, row_scale, _mm512_loadu_ps(to)));
}

AVX512 inline void finish_row(const Sums &sums, float row_scale, const float *column_scales, float *to) {
    const __m512 scale = _mm512_set1_ps(row_scale);
    finish_lanes(sums.a, scale, column_scales, to);
    finish_lanes(sums.b, scale, column_scales + kLanes, to + kLanes);
    finish_lanes(sums.c, scale, column_scales + 2 * kLanes, to + 2 * kLanes);
    finish_lanes(sums.d, scale, column_scales + 3 * kLanes, to + 3 * kLanes);
}

AVX512 inline __m512i low_halves(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0x0f)); }

AVX512 inline __m512i high_halves(__m512i bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }

AVX512 inline Sums low_halves(const Sums &bytes) {
    return {low_halves(bytes.a), low_halves(bytes.b), low_halves(bytes.c), low_halves(bytes.d)};
}

AVX512 inline Sums high_halves(const Sums &bytes) {
    return {high_halves(bytes.a), high_halves(bytes.b), high_halves(bytes.c), high_halves(bytes.d)};
}

// Rows of the tile: their sums, in registers.
template <size_t Rows>
struct TileSums {
    Sums row0, row1, row2, row3, row4, row5;

    // From that start of each row.
    AVX512 void start(const int32_t *starts, size_t stride) {
        row0 = row1 = row2 = row3 = row4 = row5 = everywhere(starts[0]);
        if (Rows > 1) row1 = everywhere(starts[stride]);
        if (Rows > 2) row2 = everywhere(starts[2 * stride]);
        if (Rows > 3) row3 = everywhere(starts[3 * stride]);
        if (Rows > 4) row4 = everywhere(starts[4 * stride]);
        if (Rows > 5) row5 = everywhere(starts[5 * stride]);
    }

    AVX512 void add(const int8_t *levels, size_t stride, const Sums &weights) {
        add_row(row0, levels, weights);
        if (Rows > 1) add_row(row1, levels + stride, weights);
        if (Rows > 2) add_row(row2, levels + 2 * stride, weights);
        if (Rows > 3) add_row(row3, levels + 3 * stride, weights);
        if (Rows > 4) add_row(row4, levels + 4 * stride, weights);
        if (Rows > 5) add_row(row5, levels + 5 * stride, weights);
    }

    AVX512 void finish(const float *scales, size_t stride, const float *columns, float *sums) {
        finish_row(row0, scales[0], columns, sums);
        if (Rows > 1) finish_row(row1, scales[stride], columns, sums + kPanel);
        if (Rows > 2) finish_row(row2, scales[2 * stride], columns, sums + 2 * kPanel);
        if (Rows > 3) finish_row(row3, scales[3 * stride], columns, sums + 3 * kPanel);
        if (Rows > 4) finish_row(row4, scales[4 * stride], columns, sums + 4 * kPanel);
        if (Rows > 5) finish_row(row5, scales[5 * stride], columns, sums + 5 * kPanel);
    }
};

AVX512 inline const float *column_scales(const Int4Tile &tile, size_t block) {
    const uint8_t *end = tile.packed + (block + 1) * block_bytes(tile.block);
    return reinterpret_cast<const float *>(end) - kPanel;
}

template <size_t Rows>
AVX512 void add_tile(const Int4Tile &tile, const Int4Bytes &bytes) {
    const size_t k = tile.k, all = k / tile.block;
    const uint8_t *weights = bytes.weights, *soon = bytes.soon;
    const int8_t *levels = tile.levels;
    for (size_t block = 0; block < tile.blocks; ++block) {
        TileSums<Rows> sums;
        sums.start(tile.starts + block, all);
        const uint8_t *end = weights + tile.block * kPanel;
        for (; weights != end; weights += kPanel * kTogether, levels += kTogether) {
            if (soon < bytes.soon_end) {
                _mm_prefetch(soon, _MM_HINT_T1);
                _mm_prefetch(soon + kCacheLine, _MM_HINT_T1);
                soon += 2 * kCacheLine;
            }
            sums.add(levels, k, load(weights));
        }
        sums.finish(tile.scales + block, all, column_scales(tile, block), tile.sums);
    }
}

AVX512 inline void fetch_ahead(const uint8_t *bytes) {
    for (size_t line = 0; line < 4; ++line) _mm_prefetch(bytes + kAhead + line * kCacheLine, _MM_HINT_T1);
}

template <size_t Rows>
AVX512 void add_few(const Int4Tile &tile) {
    const size_t k = tile.k, all = k / tile.block;
    const uint8_t *packed = tile.packed;
    const int8_t *levels = tile.levels;
    for (size_t block = 0; block < tile.blocks; ++block) {
        TileSums<Rows> sums;
        sums.start(tile.starts + block, all);
        const uint8_t *end = packed + nibble_bytes(tile.block);
        for (; packed != end; packed += kPanel * kTogether, levels += 2 * kTogether) {
            fetch_ahead(packed);
            const Sums both = load(packed);
            sums.add(levels, k, low_halves(both));
            sums.add(levels + kTogether, k, high_halves(both));
        }
        fetch_ahead(packed);
        packed += kPanel * sizeof(float);
        sums.finish(tile.scales + block, all, column_scales(tile, block), tile.sums);
    }
}

}  // namespace

void add_tile(const Int4Tile &tile, const Int4Bytes &bytes) {
    static_assert(kTileRows == 6);
    switch (tile.rows) {
        case 1: return add_tile<1>(tile, bytes);
        case 2: return add_tile<2>(tile, bytes);
        case 3: return add_tile<3>(tile, bytes);
        case 4: return add_tile<4>(tile, bytes);
        case 5: return add_tile<5>(tile, bytes);
        default: return add_tile<6>(tile, bytes);
    }
}

void add_few(const Int4Tile &tile) {
    static_assert(kFewRows == 4);  // more have no registers left for both halves
    switch (tile.rows) {
        case 1: return add_few<1>(tile);
        case 2: return add_few<2>(tile);
        case 3: return add_few<3>(tile);
        default: return add_few<4>(tile);
    }
}

AVX512 void unpack(const uint8_t *nibbles, size_t block, uint8_t *bytes) {
    const __m512i low = _mm512_set1_epi8(0x0f);
    constexpr size_t kFour = kPanel * kTogether;  // rows of a panel, in bytes
    for (size_t row = 0; row < block; row += 2 * kTogether, bytes += 2 * kFour) {
        for (size_t at = 0; at < kFour; at += kCacheLine, nibbles += kCacheLine) {
            const __m512i both = _mm512_loadu_si512(nibbles);
            _mm512_store_si512(bytes + at, _mm512_and_si512(both, low));
            _mm512_store_si512(bytes + kFour + at, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
        }
    }
}

AVX512 void round_block(const float *x, size_t size, int8_t *levels, float *scale, int32_t *start) {
    // As whole numbers, positive floats keep their order, and what is no number is the largest.
    const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();
    for (size_t i = 0; i < size; i += kLanes) {
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(x + i), no_sign));
    }
    const int32_t bits = _mm512_reduce_max_epi32(most);
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    const bool zeros = largest < kSmallest;
    *scale = zeros ? 0 : largest / kLargestLevel;
    const __m512 levels_per_1 = _mm512_set1_ps(zeros ? 0 : kLargestLevel / largest);
    __m512i sum = _mm512_setzero_si512();
    for (size_t i = 0; i < size; i += kLanes) {
        const __m512i level = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), levels_per_1));
        sum = _mm512_add_epi32(sum, level);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(levels + i), _mm512_cvtsepi32_epi8(level));
    }
    *start = -8 * _mm512_reduce_add_epi32(sum);
}

}  // namespace llamavid

#endif
