// AVX2: a weight is two int16 digits, and pairs of taps are multiplied and added in one instruction.

#include "kernels.h"

#ifdef LLAMAVID_X86

#include <immintrin.h>

#include <array>
#include <cstring>

// By function, not by file: an inline function of the standard library, compiled for AVX2 here, could
// be the copy that the linker keeps for all.
#define AVX2 __attribute__((target("avx2")))

namespace llamavid {
namespace {

constexpr int32_t kBlock = 4;

// To the low digits of taps 0 and 1, their high digits, and those of taps 2 and 3.
void arrange(int32_t *weights) {
    int16_t digits[2 * kBlock];
    for (int tap = 0; tap < kBlock; ++tap) {
        const int16_t low = static_cast<int16_t>(weights[tap] & 0xffff);
        const int place = tap / 2 * 4 + tap % 2;
        digits[place] = low;
        digits[place + 2] = static_cast<int16_t>((weights[tap] - low) / 65536);
    }
    std::memcpy(weights, digits, sizeof digits);
}

AVX2 inline __m256i pair_of(const int32_t *digits) { return _mm256_set1_epi32(*digits); }

AVX2 inline __m128i load(const uint8_t *bytes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes));
}

AVX2 inline __m256i two_rows(const uint8_t *first, const uint8_t *second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load(first)), load(second), 1);
}

AVX2 inline void add(__m256i &sum, __m256i samples, __m256i digits) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(samples, digits));
}

AVX2 inline __m256i rounded(__m256i low, __m256i high) {
    const __m256i sum = _mm256_add_epi32(low, _mm256_slli_epi32(high, 16));
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kFractionBits);
}

inline void store_rgb(uint8_t *to, int32_t rgb) { std::memcpy(to, &rgb, sizeof rgb); }

AVX2 void narrow(const uint8_t *const rows[kRowsAtOnce], const Axis &columns,
                 uint8_t *const narrowed[kRowsAtOnce]) {
    // Of four pixels, two at a time, to int16: red of both, green of both, blue of both, nothing.
    const __m256i first_two = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i last_two = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const uintptr_t to_next = bytes_to_next(rows);
    for (size_t x = 0; x < columns.spans.size(); ++x) {
        const Span span = columns.spans[x];
        const int32_t *digits = columns.weights_of(x);
        const size_t start = static_cast<size_t>(span.first) * kChannels;
        const size_t end = start + static_cast<size_t>(span.count) * kChannels;
        for (size_t row = 0; row < kRowsAtOnce; ++row) fetch(rows[row] + start, to_next);
        __m256i low_01 = _mm256_setzero_si256(), high_01 = low_01, low_23 = low_01, high_23 = low_01;
        for (size_t at = start; at < end; at += kBlock * kChannels, digits += kBlock) {
            const __m256i rows_01 = two_rows(rows[0] + at, rows[1] + at);
            const __m256i rows_23 = two_rows(rows[2] + at, rows[3] + at);
            __m256i samples_01 = _mm256_shuffle_epi8(rows_01, first_two);
            __m256i samples_23 = _mm256_shuffle_epi8(rows_23, first_two);
            add(low_01, samples_01, pair_of(digits));
            add(low_23, samples_23, pair_of(digits));
            add(high_01, samples_01, pair_of(digits + 1));
            add(high_23, samples_23, pair_of(digits + 1));
            samples_01 = _mm256_shuffle_epi8(rows_01, last_two);
            samples_23 = _mm256_shuffle_epi8(rows_23, last_two);
            add(low_01, samples_01, pair_of(digits + 2));
            add(low_23, samples_23, pair_of(digits + 2));
            add(high_01, samples_01, pair_of(digits + 3));
            add(high_23, samples_23, pair_of(digits + 3));
        }
        const __m256i words = _mm256_packs_epi32(rounded(low_01, high_01), rounded(low_23, high_23));
        const __m256i bytes = _mm256_packus_epi16(words, words);
        const __m128i rows_02 = _mm256_castsi256_si128(bytes), rows_13 = _mm256_extracti128_si256(bytes, 1);
        store_rgb(narrowed[0] + x * kChannels, _mm_cvtsi128_si32(rows_02));
        store_rgb(narrowed[1] + x * kChannels, _mm_cvtsi128_si32(rows_13));
        store_rgb(narrowed[2] + x * kChannels, _mm_extract_epi32(rows_02, 1));
        store_rgb(narrowed[3] + x * kChannels, _mm_extract_epi32(rows_13, 1));
    }
}

AVX2 void blend(const uint8_t *const *rows, const int32_t *weights, int32_t count, size_t bytes,
                uint8_t *blended) {
    const __m256i zero = _mm256_setzero_si256();
    for (size_t at = 0; at < bytes; at += 32) {
        __m256i low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
        for (int32_t tap = 0; tap < count; tap += 2) {
            const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(rows[tap] + at));
            const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(rows[tap + 1] + at));
            const __m256i front = _mm256_unpacklo_epi8(a, b), back = _mm256_unpackhi_epi8(a, b);
            const __m256i samples[4] = {
                _mm256_unpacklo_epi8(front, zero), _mm256_unpackhi_epi8(front, zero),
                _mm256_unpacklo_epi8(back, zero), _mm256_unpackhi_epi8(back, zero)};
            for (int i = 0; i < 4; ++i) {
                add(low[i], samples[i], pair_of(weights + tap));
                add(high[i], samples[i], pair_of(weights + tap + 1));
            }
        }
        const __m256i front = _mm256_packs_epi32(rounded(low[0], high[0]), rounded(low[1], high[1]));
        const __m256i back = _mm256_packs_epi32(rounded(low[2], high[2]), rounded(low[3], high[3]));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(blended + at), _mm256_packus_epi16(front, back));
    }
}

// For each third of sixteen pixels' RGB and each channel: which of its bytes go where.
using Places = std::array<std::array<std::array<uint8_t, 16>, kChannels>, 3>;

constexpr Places rgb_places() {
    Places places{};
    for (size_t i = 0; i < 48; ++i) {
        for (size_t channel = 0; channel < kChannels; ++channel) {
            places[i / 16][channel][i % 16] = static_cast<uint8_t>(i % 3 == channel ? i / 3 : 128);
        }
    }
    return places;
}
constexpr Places kRgbPlaces = rgb_places();

AVX2 inline __m256i load32(const uint8_t *bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes));
}

AVX2 inline __m256i even_bytes(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi16(0xff)); }

AVX2 inline __m256i odd_bytes(__m256i bytes) { return _mm256_srli_epi16(bytes, 8); }

// Sixteen samples, less an offset.
AVX2 inline __m256i centered(__m256i samples, int16_t offset) {
    return _mm256_sub_epi16(_mm256_slli_epi16(samples, 3), _mm256_set1_epi16(offset));
}

AVX2 inline __m256i times(__m256i samples, int16_t weight) {
    return _mm256_mulhi_epi16(samples, _mm256_set1_epi16(weight));
}

// A channel of 32 pixels.
AVX2 inline __m256i channel_of(__m256i even_luma, __m256i odd_luma, __m256i chroma) {
    const __m256i low = _mm256_setzero_si256(), high = _mm256_set1_epi16(255);
    const __m256i even = _mm256_min_epi16(_mm256_max_epi16(_mm256_add_epi16(even_luma, chroma), low), high);
    const __m256i odd = _mm256_min_epi16(_mm256_max_epi16(_mm256_add_epi16(odd_luma, chroma), low), high);
    return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

AVX2 inline __m256i placed(__m256i samples, const std::array<uint8_t, 16> &places) {
    return _mm256_shuffle_epi8(samples, _mm256_broadcastsi128_si256(load(places.data())));
}

AVX2 inline void store_rgb32(uint8_t *rgb, __m256i red, __m256i green, __m256i blue) {
    for (size_t third = 0; third < 3; ++third) {
        const auto &places = kRgbPlaces[third];
        const __m256i red_green = _mm256_or_si256(placed(red, places[0]), placed(green, places[1]));
        const __m256i bytes = _mm256_or_si256(red_green, placed(blue, places[2]));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(rgb + third * 16), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(rgb + 48 + third * 16),
                         _mm256_extracti128_si256(bytes, 1));
    }
}

AVX2 void to_rgb(const YuvRow &row, const YuvWeights &weights, size_t width, uint8_t *rgb) {
    for (size_t x = 0; x < width; x += 32) {
        const __m256i pairs = row.paired ? load32(row.u + x) : _mm256_setzero_si256();
        const __m256i u = centered(
            row.paired ? even_bytes(pairs) : _mm256_cvtepu8_epi16(load(row.u + x / 2)), kChromaOffset);
        const __m256i v = centered(
            row.paired ? odd_bytes(pairs) : _mm256_cvtepu8_epi16(load(row.v + x / 2)), kChromaOffset);
        const __m256i luma = load32(row.luma + x);
        const __m256i even = times(centered(even_bytes(luma), weights.luma_offset), weights.luma);
        const __m256i odd = times(centered(odd_bytes(luma), weights.luma_offset), weights.luma);
        const __m256i green = _mm256_add_epi16(times(u, weights.green_u), times(v, weights.green_v));
        store_rgb32(rgb + x * kChannels, channel_of(even, odd, times(v, weights.red_v)),
                    channel_of(even, odd, green), channel_of(even, odd, times(u, weights.blue_u)));
    }
}

}  // namespace

const Kernels avx2_kernels{"avx2", kBlock, arrange, narrow, blend, to_rgb};

}  // namespace llamavid

#endif
