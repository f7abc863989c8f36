// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): a weight is three int8 digits, and four taps
// are multiplied and added in one instruction.

#include "kernels.h"

#ifdef LLAMAVID_X86

#include <immintrin.h>

#include <array>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 means its own header, bug 105593
#endif

// By function, not by file, as in kernels_avx2.cpp. The names are those that `runs_avx512` asks for.
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")))

namespace llamavid {
namespace {

constexpr int32_t kBlock = 16;

// To sixteen low digits, sixteen middle ones and sixteen high ones.
void arrange(int32_t *weights) {
    int8_t digits[3][kBlock];
    for (int tap = 0; tap < kBlock; ++tap) {
        int32_t rest = weights[tap];
        for (auto &digit : digits) {
            digit[tap] = static_cast<int8_t>(rest & 0xff);
            rest = (rest - digit[tap]) / 256;
        }
    }
    std::memcpy(weights, digits, sizeof digits);
}

// Of sixteen pixels: all reds, all greens, all blues; the last quarter is not used.
constexpr std::array<uint8_t, 64> by_channel() {
    std::array<uint8_t, 64> places{};
    for (size_t i = 0; i < 3 * kBlock; ++i) places[i] = static_cast<uint8_t>(i % kBlock * 3 + i / kBlock);
    return places;
}
constexpr std::array<uint8_t, 64> kByChannel = by_channel();

// The sums of each digit of the weights.
struct Sums {
    __m512i low, middle, high;
};

AVX512 inline __m512i load(const void *bytes) { return _mm512_loadu_si512(bytes); }

AVX512 inline __m512i sixteen(const int32_t *digits) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(digits)));
}

AVX512 inline void add(Sums &sums, __m512i samples, const Sums &digits) {
    sums.low = _mm512_dpbusd_epi32(sums.low, samples, digits.low);
    sums.middle = _mm512_dpbusd_epi32(sums.middle, samples, digits.middle);
    sums.high = _mm512_dpbusd_epi32(sums.high, samples, digits.high);
}

AVX512 inline __m512i total(const Sums &sums) {
    const __m512i upper = _mm512_add_epi32(sums.middle, _mm512_slli_epi32(sums.high, 8));
    return _mm512_add_epi32(sums.low, _mm512_slli_epi32(upper, 8));
}

AVX512 inline __m512i rounded(__m512i sum) {
    return _mm512_srai_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(kHalf)), kFractionBits);
}

// In each quarter, the sum of a's four values, of b's, of c's and of d's.
AVX512 inline __m512i sums_by_four(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

inline void store_rgb(uint8_t *to, int32_t rgb) { std::memcpy(to, &rgb, sizeof rgb); }

AVX512 void narrow(const uint8_t *const rows[kRowsAtOnce], const Axis &columns,
                   uint8_t *const narrowed[kRowsAtOnce]) {
    const __m512i places = load(kByChannel.data()), zero = _mm512_setzero_si512();
    const Sums none{zero, zero, zero};
    const uintptr_t to_next = bytes_to_next(rows);
    const __m128i by_row = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (size_t x = 0; x < columns.spans.size(); ++x) {
        const Span span = columns.spans[x];
        const int32_t *weights = columns.weights_of(x);
        const size_t start = static_cast<size_t>(span.first) * kChannels;
        const size_t end = start + static_cast<size_t>(span.count) * kChannels;
        for (size_t row = 0; row < kRowsAtOnce; ++row) fetch(rows[row] + start, to_next);
        Sums sums[kRowsAtOnce] = {none, none, none, none};
        for (size_t at = start; at < end; at += kBlock * kChannels, weights += kBlock) {
            const Sums digits{sixteen(weights), sixteen(weights + 4), sixteen(weights + 8)};
            for (size_t row = 0; row < kRowsAtOnce; ++row) {
                add(sums[row], _mm512_permutexvar_epi8(places, load(rows[row] + at)), digits);
            }
        }
        const __m512i by_four = sums_by_four(total(sums[0]), total(sums[1]), total(sums[2]), total(sums[3]));
        const __m512i samples = _mm512_max_epi32(rounded(by_four), zero);
        const __m128i rgb = _mm_shuffle_epi8(_mm512_cvtusepi32_epi8(samples), by_row);
        store_rgb(narrowed[0] + x * kChannels, _mm_cvtsi128_si32(rgb));
        store_rgb(narrowed[1] + x * kChannels, _mm_extract_epi32(rgb, 1));
        store_rgb(narrowed[2] + x * kChannels, _mm_extract_epi32(rgb, 2));
        store_rgb(narrowed[3] + x * kChannels, _mm_extract_epi32(rgb, 3));
    }
}

AVX512 void blend(const uint8_t *const *rows, const int32_t *weights, int32_t count, size_t bytes,
                  uint8_t *blended) {
    const Sums none{_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (size_t at = 0; at < bytes; at += 64) {
        Sums sums[4] = {none, none, none, none};
        for (int32_t tap = 0; tap < count; tap += 4) {
            const __m512i a = load(rows[tap] + at), b = load(rows[tap + 1] + at);
            const __m512i c = load(rows[tap + 2] + at), d = load(rows[tap + 3] + at);
            const __m512i ab = _mm512_unpacklo_epi8(a, b), AB = _mm512_unpackhi_epi8(a, b);
            const __m512i cd = _mm512_unpacklo_epi8(c, d), CD = _mm512_unpackhi_epi8(c, d);
            const int32_t *four = weights + tap / kBlock * kBlock + tap % kBlock / 4;
            const Sums digits{_mm512_set1_epi32(four[0]), _mm512_set1_epi32(four[4]),
                              _mm512_set1_epi32(four[8])};
            add(sums[0], _mm512_unpacklo_epi16(ab, cd), digits);
            add(sums[1], _mm512_unpackhi_epi16(ab, cd), digits);
            add(sums[2], _mm512_unpacklo_epi16(AB, CD), digits);
            add(sums[3], _mm512_unpackhi_epi16(AB, CD), digits);
        }
        const __m512i front = _mm512_packs_epi32(rounded(total(sums[0])), rounded(total(sums[1])));
        const __m512i back = _mm512_packs_epi32(rounded(total(sums[2])), rounded(total(sums[3])));
        _mm512_storeu_si512(blended + at, _mm512_packus_epi16(front, back));
    }
}

// For each third of 64 pixels' RGB, the byte that goes there: of red, or of green (from 64 on), or of blue.
using Places = std::array<std::array<uint8_t, 64>, 3>;

constexpr Places rgb_places() {
    Places places{};
    for (size_t i = 0; i < 192; ++i) {
        places[i / 64][i % 64] = static_cast<uint8_t>(i / 3 + (i % 3 == 1 ? 64 : 0));
    }
    return places;
}
constexpr Places kRgbPlaces = rgb_places();
// Bit i: byte i of the third is blue.
constexpr uint64_t kBlue[3] = {0x4924924924924924u, 0x2492492492492492u, 0x9249249249249249u};

AVX512 inline __m512i even_bytes(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi16(0xff)); }

AVX512 inline __m512i odd_bytes(__m512i bytes) { return _mm512_srli_epi16(bytes, 8); }

AVX512 inline __m512i words(const uint8_t *bytes) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes)));
}

// 32 samples, less an offset.
AVX512 inline __m512i centered(__m512i samples, int16_t offset) {
    return _mm512_sub_epi16(_mm512_slli_epi16(samples, 3), _mm512_set1_epi16(offset));
}

AVX512 inline __m512i times(__m512i samples, int16_t weight) {
    return _mm512_mulhi_epi16(samples, _mm512_set1_epi16(weight));
}

// A channel of 64 pixels.
AVX512 inline __m512i channel_of(__m512i even_luma, __m512i odd_luma, __m512i chroma) {
    const __m512i low = _mm512_setzero_si512(), high = _mm512_set1_epi16(255);
    const __m512i even = _mm512_min_epi16(_mm512_max_epi16(_mm512_add_epi16(even_luma, chroma), low), high);
    const __m512i odd = _mm512_min_epi16(_mm512_max_epi16(_mm512_add_epi16(odd_luma, chroma), low), high);
    return _mm512_or_si512(even, _mm512_slli_epi16(odd, 8));
}

AVX512 void to_rgb(const YuvRow &row, const YuvWeights &weights, size_t width, uint8_t *rgb) {
    for (size_t x = 0; x < width; x += 64, rgb += 64 * kChannels) {
        const __m512i pairs = row.paired ? load(row.u + x) : _mm512_setzero_si512();
        const __m512i u = centered(row.paired ? even_bytes(pairs) : words(row.u + x / 2), kChromaOffset);
        const __m512i v = centered(row.paired ? odd_bytes(pairs) : words(row.v + x / 2), kChromaOffset);
        const __m512i luma = load(row.luma + x);
        const __m512i even = times(centered(even_bytes(luma), weights.luma_offset), weights.luma);
        const __m512i odd = times(centered(odd_bytes(luma), weights.luma_offset), weights.luma);
        const __m512i greens = _mm512_add_epi16(times(u, weights.green_u), times(v, weights.green_v));
        const __m512i red = channel_of(even, odd, times(v, weights.red_v));
        const __m512i green = channel_of(even, odd, greens);
        const __m512i blue = channel_of(even, odd, times(u, weights.blue_u));
        for (size_t third = 0; third < 3; ++third) {
            const __m512i places = load(kRgbPlaces[third].data());
            const __m512i red_green = _mm512_permutex2var_epi8(red, places, green);
            _mm512_storeu_si512(rgb + third * 64,
                                _mm512_mask_permutexvar_epi8(red_green, kBlue[third], places, blue));
        }
    }
}

}  // namespace

const Kernels avx512_kernels{"avx512", kBlock, arrange, narrow, blend, to_rgb};

}  // namespace llamavid

#endif
