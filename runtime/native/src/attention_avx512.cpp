// Attention with AVX-512. A vector's lanes are sixteen queries throughout:
//
//     scores [key, query]  = sum over d of    k[key, d] * query[d, query]
//     mixed  [d, query]    = sum over keys of v[key, d] * weight[key, query]
//
// so softmax works down columns, both products are one loop (`multiply`) in which a number of k or v is
// read where it lies and meets every lane, and only a block of queries is ever copied: turned on its side
// at the start, as its result is at the end. Keys come in blocks that caches hold, and what earlier
// blocks gave is scaled as the maximum rises (Milakov and Gimelshein 2018, arXiv 1805.02867).

#include "attention.h"
#include "kernels.h"

#ifdef LLAMAVID_X86

#include <algorithm>
#include <cstdint>
#include <limits>

#include "lanes.h"

#define AVX512 ATTENTION_AVX512

namespace llamavid {
namespace {

constexpr size_t kRows = 8;      // of a tile: with three vectors of queries, 24 of the 32 registers add up
constexpr size_t kMostWide = 3;  // vectors of queries in a block
constexpr size_t kKeys = 320;    // in a block: 257 are one; a multiple of kRows

size_t divided_up(size_t all, size_t by) { return (all + by - 1) / by; }

// A head's block of queries: `wide` vectors of lanes, of which the last may be part empty.
struct Block {
    size_t head, first, queries, wide;
};

size_t blocks_of(const AttentionShape &shape) {
    return divided_up(divided_up(shape.queries, kLanes), kMostWide);
}

// Blocks of a head differ by one vector at most.
Block block_of(const AttentionShape &shape, size_t part) {
    const size_t blocks = blocks_of(shape), vectors = divided_up(shape.queries, kLanes);
    const size_t at = part % blocks, first = at * vectors / blocks, end = (at + 1) * vectors / blocks;
    const size_t queries = std::min(end * kLanes, shape.queries) - first * kLanes;
    return {part / blocks, first * kLanes, queries, end - first};
}

// A call's scratch; rows are `wide` vectors long.
struct Scratch {
    float *queries;     // [head_width, lanes], scaled
    float *scores;      // [kKeys, lanes], then weights
    float *mixed;       // [head_width, lanes]
    float *most, *sum;  // [lanes] of the scores and of the weights so far
};

Scratch scratch_in(void *memory, size_t head_width) {
    const size_t lanes = kMostWide * kLanes;
    auto *queries = static_cast<float *>(memory);
    float *scores = queries + head_width * lanes, *mixed = scores + kKeys * lanes;
    return {queries, scores, mixed, mixed + head_width * lanes, mixed + (head_width + 1) * lanes};
}

// Asks for memory some floats ahead, as `fetch` does, into the nearest cache or the one behind it.
inline void ask(const float *from, size_t ahead) {
    const uintptr_t place = reinterpret_cast<uintptr_t>(from) + ahead * sizeof *from;
    __builtin_prefetch(reinterpret_cast<const void *>(place));
}

inline void ask_later(const float *from, size_t ahead) {
    const uintptr_t place = reinterpret_cast<uintptr_t>(from) + ahead * sizeof *from;
    __builtin_prefetch(reinterpret_cast<const void *>(place), 0, 2);
}

// What meets the lanes: kRows rows, of a number for each step x of a sum. A step also asks for its share of
// the next head: unasked, the queries wait a fifth of their time for what a layer before has just written.
struct Keys {
    const float *rows[kRows];
    size_t head_width;

    float number(size_t row, size_t x) const { return rows[row][x]; }
    void ask_ahead(size_t x) const { ask_later(rows[x % kRows], x - x % kRows + head_width); }
};

// A row is a column of the values; a step is a key, far from the one before.
struct Values {
    const float *first;
    size_t stride, head_width;

    float number(size_t row, size_t x) const { return first[x * stride + row]; }
    void ask_ahead(size_t x) const {
        ask(first, (x + kRows) * stride);
        ask_later(first, x * stride + head_width);
    }
};

// sums [kRows, lanes] = or, `onto` what is there, += the products of `left` and right [x, lanes], summed
// over x < count. Small sums are added up to large ones, so that many keys cost no digits.
template <size_t kWide, typename Left>
AVX512 inline void multiply(const Left &left, const float *right, size_t count, bool onto, float *sums) {
    constexpr size_t stride = kWide * kLanes;
    __m512 sum[kRows][kWide];  // registers once unrolled: look at the loop's instructions after a change
#pragma GCC unroll 8
    for (size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
        for (size_t w = 0; w < kWide; ++w) sum[i][w] = _mm512_setzero_ps();
    }
    for (size_t x = 0; x < count; ++x, right += stride) {
        left.ask_ahead(x);
        __m512 lanes[kWide];
#pragma GCC unroll 3
        for (size_t w = 0; w < kWide; ++w) lanes[w] = _mm512_load_ps(right + w * kLanes);
#pragma GCC unroll 8
        for (size_t i = 0; i < kRows; ++i) {
            const __m512 number = _mm512_set1_ps(left.number(i, x));
#pragma GCC unroll 3
            for (size_t w = 0; w < kWide; ++w) sum[i][w] = _mm512_fmadd_ps(number, lanes[w], sum[i][w]);
        }
    }
#pragma GCC unroll 8
    for (size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
        for (size_t w = 0; w < kWide; ++w) {
            float *to = sums + i * stride + w * kLanes;
            _mm512_store_ps(to, onto ? _mm512_add_ps(_mm512_load_ps(to), sum[i][w]) : sum[i][w]);
        }
    }
}

// scores [keys, lanes], filled up to whole tiles with the last key's.
template <size_t kWide>
AVX512 void score(const float *k, size_t k_stride, size_t keys, size_t head_width, const Scratch &scratch) {
    for (size_t key = 0; key < keys; key += kRows) {
        Keys tile{{}, head_width};
        for (size_t i = 0; i < kRows; ++i) tile.rows[i] = k + std::min(key + i, keys - 1) * k_stride;
        multiply<kWide>(tile, scratch.queries, head_width, false, scratch.scores + key * kWide * kLanes);
    }
}

// e^natural for natural <= 0, exactly 1 at 0; as a power of two, of which the fraction's is a polynomial,
// fitted over [0, 1] for the least relative error, 1.5e-7 with its rounding. What is below 2^-100 is 0, so
// that no denormal number slows the sums: beside the largest weight, 1, it counts for nothing.
AVX512 inline __m512 exponential(__m512 natural) {
    const __m512 x = _mm512_mul_ps(natural, _mm512_set1_ps(1.44269504f));
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 power = _mm512_set1_ps(0x1.e974fap-10f);
    power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(0x1.277856p-7f));
    power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(0x1.c91ce6p-5f));
    power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(0x1.ebdb56p-3f));
    power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(0x1.62e4bap-1f));
    power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(1.0f));
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-100.0f), _CMP_NLE_UQ);  // NaN does
    return _mm512_maskz_scalef_ps(counts, power, x);
}

// Sixteen queries' scores [keys, stride] to weights, in place: e^(score - most). Raises `most` and counts
// the weights into `sum`, which hold what earlier blocks of keys gave; returns what scales that.
AVX512 __m512 weigh(float *scores, size_t stride, size_t keys, float *most, float *sum) {
    const __m512 before = _mm512_load_ps(most);
    __m512 a = before, b = before, c = before, d = before;  // four: a maximum takes four cycles
    for (size_t key = 0; key < keys; key += 4) {            // past the end the last key's lie again
        a = _mm512_max_ps(_mm512_load_ps(scores + key * stride), a);
        b = _mm512_max_ps(_mm512_load_ps(scores + (key + 1) * stride), b);
        c = _mm512_max_ps(_mm512_load_ps(scores + (key + 2) * stride), c);
        d = _mm512_max_ps(_mm512_load_ps(scores + (key + 3) * stride), d);
    }
    const __m512 now = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
    const __m512 scale = exponential(_mm512_sub_ps(before, now));
    __m512 weights = _mm512_setzero_ps();
    for (size_t key = 0; key < keys; ++key, scores += stride) {
        const __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(scores), now));
        _mm512_store_ps(scores, weight);
        weights = _mm512_add_ps(weights, weight);
    }
    _mm512_store_ps(most, now);
    _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(sum), scale, weights));
    return scale;
}

// mixed [head_width, lanes] = or, `onto` what is there, += the values [keys, head_width] by their weights.
template <size_t kWide>
AVX512 void mix(const float *v, size_t v_stride, size_t keys, size_t head_width, bool onto,
                const Scratch &scratch) {
    for (size_t d = 0; d < head_width; d += kRows) {
        const Values tile{v + d, v_stride, head_width};
        multiply<kWide>(tile, scratch.scores, keys, onto, scratch.mixed + d * kWide * kLanes);
    }
}

AVX512 void rescale(float *mixed, size_t stride, size_t head_width, __m512 scale) {
    for (size_t d = 0; d < head_width; ++d, mixed += stride) {
        _mm512_store_ps(mixed, _mm512_mul_ps(_mm512_load_ps(mixed), scale));
    }
}

// Asks for sixteen rows, of queries of the next part or of results of this one.
void ask_for_rows(const float *rows, size_t stride, size_t width) {
    for (size_t i = 0; i < kLanes; ++i) {
        for (size_t d = 0; d < width + kLanes; d += kLanes) {  // a line more: rows may start inside one
            ask_later(rows, i * stride + std::min(d, width - 1));
        }
    }
}

RowsOut results_of(const AttentionRows &rows, size_t row, size_t column) {
    const size_t at = row * rows.mixed_stride + column;
    return {rows.mixed ? rows.mixed + at : nullptr, rows.mixed ? nullptr : rows.rounded + at, rows.mixed_stride,
            rows.mixed_bias ? rows.mixed_bias + column : nullptr, rows.levels_per_1};
}

template <size_t kWide>
AVX512 void attend_block(const AttentionShape &shape, const AttentionRows &rows, const Block &block,
                         const Scratch &scratch) {
    constexpr size_t stride = kWide * kLanes;
    const size_t width = shape.head_width, column = block.head * width;
    const size_t q_vector = kLanes * rows.q_stride;
    const float *q = rows.q + block.first * rows.q_stride + column;
    const bool last = block.first + block.queries == shape.queries;
    const float *next_q = last ? rows.q + column + width : q + kWide * q_vector;
    const float *q_bias = rows.q_bias ? rows.q_bias + column : nullptr;

    // 1) the queries, turned
    for (size_t w = 0; w < kWide; ++w) {
        rows_to_lanes(q + w * q_vector, rows.q_stride, block.queries - w * kLanes, width, q_bias,
                      _mm512_set1_ps(shape.scale), scratch.queries + w * kLanes, stride);
        _mm512_store_ps(scratch.most + w * kLanes, _mm512_set1_ps(-std::numeric_limits<float>::infinity()));
        _mm512_store_ps(scratch.sum + w * kLanes, _mm512_setzero_ps());
    }

    // 2) a block of keys: scores, weights, and the values by their weights
    for (size_t key = 0; key < shape.keys; key += kKeys) {
        const size_t keys = std::min(kKeys, shape.keys - key);
        score<kWide>(rows.k + key * rows.k_stride + column, rows.k_stride, keys, width, scratch);
        for (size_t w = 0; w < kWide; ++w) {
            const size_t lanes = w * kLanes;
            const __m512 scale =
                weigh(scratch.scores + lanes, stride, keys, scratch.most + lanes, scratch.sum + lanes);
            if (key) {
                rescale(scratch.mixed + lanes, stride, width, scale);
                continue;
            }
            ask_for_rows(next_q + w * q_vector, rows.q_stride, width);
            const RowsOut to = results_of(rows, block.first + lanes, column);
            if (to.floats) ask_for_rows(to.floats, to.stride, width);
        }
        mix<kWide>(rows.v + key * rows.v_stride + column, rows.v_stride, keys, width, key > 0, scratch);
    }

    // 3) what was mixed, by the sum of the weights, turned back
    for (size_t w = 0; w < kWide; ++w) {
        const __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(scratch.sum + w * kLanes));
        lanes_to_rows(scratch.mixed + w * kLanes, stride, share, width,
                      results_of(rows, block.first + w * kLanes, column), block.queries - w * kLanes);
    }
}

}  // namespace

size_t attention_scratch(const AttentionShape &shape) {
    return (2 * shape.head_width + kKeys + 2) * kMostWide * kLanes * sizeof(float);
}

size_t attention_parts(const AttentionShape &shape) { return shape.heads * blocks_of(shape); }

void attend(const AttentionShape &shape, const AttentionRows &rows, size_t part, void *scratch) {
    const Block block = block_of(shape, part);
    const Scratch places = scratch_in(scratch, shape.head_width);
    if (block.wide == 3) return attend_block<3>(shape, rows, block, places);
    if (block.wide == 2) return attend_block<2>(shape, rows, block, places);
    attend_block<1>(shape, rows, block, places);
}

}  // namespace llamavid

#endif
