// NEON, as every 64-bit Arm has it: int32 products, four at a time.

#include "kernels.h"

#ifdef LLAMAVID_ARM

#include <arm_neon.h>

#include <cstring>

namespace llamavid {
namespace {

constexpr int32_t kBlock = 8;

void arrange(int32_t *) {}

int32x4_t with_products(int32x4_t sum, uint8x8_t samples, const int32_t *weights) {
    const int16x8_t wide = vreinterpretq_s16_u16(vmovl_u8(samples));
    sum = vmlaq_s32(sum, vmovl_s16(vget_low_s16(wide)), vld1q_s32(weights));
    return vmlaq_s32(sum, vmovl_s16(vget_high_s16(wide)), vld1q_s32(weights + 4));
}

void narrow_row(const uint8_t *row, const Axis &columns, uint8_t *narrowed) {
    for (size_t x = 0; x < columns.spans.size(); ++x) {
        const Span span = columns.spans[x];
        const uint8_t *samples = row + static_cast<ptrdiff_t>(span.first) * kChannels;
        const int32_t *weights = columns.weights_of(x);
        int32x4_t red = vdupq_n_s32(0), green = red, blue = red;
        for (int32_t tap = 0; tap < span.count; tap += kBlock) {
            const uint8x8x3_t rgb = vld3_u8(samples + tap * kChannels);
            red = with_products(red, rgb.val[0], weights + tap);
            green = with_products(green, rgb.val[1], weights + tap);
            blue = with_products(blue, rgb.val[2], weights + tap);
        }
        const int32x4_t sums = vpaddq_s32(vpaddq_s32(red, green), vpaddq_s32(blue, blue));
        const int32x4_t whole = vshrq_n_s32(vaddq_s32(sums, vdupq_n_s32(kHalf)), kFractionBits);
        const uint16x4_t words = vqmovun_s32(whole);
        const uint8x8_t bytes = vqmovn_u16(vcombine_u16(words, words));
        const uint32_t rgb = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
        std::memcpy(narrowed + x * kChannels, &rgb, sizeof rgb);
    }
}

void narrow(const uint8_t *const rows[kRowsAtOnce], const Axis &columns,
            uint8_t *const narrowed[kRowsAtOnce]) {
    for (size_t row = 0; row < kRowsAtOnce; ++row) narrow_row(rows[row], columns, narrowed[row]);
}

uint16x8_t words_of(int32x4_t front, int32x4_t back) {
    return vcombine_u16(vqmovun_s32(vshrq_n_s32(front, kFractionBits)),
                        vqmovun_s32(vshrq_n_s32(back, kFractionBits)));
}

void blend(const uint8_t *const *rows, const int32_t *weights, int32_t count, size_t bytes,
           uint8_t *blended) {
    for (size_t at = 0; at < bytes; at += 16) {
        const int32x4_t half = vdupq_n_s32(kHalf);
        int32x4_t sums[4] = {half, half, half, half};
        for (int32_t tap = 0; tap < count; ++tap) {
            const uint8x16_t samples = vld1q_u8(rows[tap] + at);
            const int16x8_t front = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(samples)));
            const int16x8_t back = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(samples)));
            sums[0] = vmlaq_n_s32(sums[0], vmovl_s16(vget_low_s16(front)), weights[tap]);
            sums[1] = vmlaq_n_s32(sums[1], vmovl_s16(vget_high_s16(front)), weights[tap]);
            sums[2] = vmlaq_n_s32(sums[2], vmovl_s16(vget_low_s16(back)), weights[tap]);
            sums[3] = vmlaq_n_s32(sums[3], vmovl_s16(vget_high_s16(back)), weights[tap]);
        }
        const uint8x8_t front = vqmovn_u16(words_of(sums[0], sums[1]));
        const uint8x8_t back = vqmovn_u16(words_of(sums[2], sums[3]));
        vst1q_u8(blended + at, vcombine_u8(front, back));
    }
}

// Eight samples, less an offset; half of it all, for `times` doubles. Offsets are even.
int16x8_t centered(uint8x8_t samples, int16_t offset) {
    const int16x8_t words = vreinterpretq_s16_u16(vshll_n_u8(samples, 2));
    return vsubq_s16(words, vdupq_n_s16(static_cast<int16_t>(offset / 2)));
}

int16x8_t times(int16x8_t samples, int16_t weight) { return vqdmulhq_n_s16(samples, weight); }

// A channel of sixteen pixels.
uint8x16_t channel_of(int16x8_t even_luma, int16x8_t odd_luma, int16x8_t chroma) {
    const uint8x8_t even = vqmovun_s16(vaddq_s16(even_luma, chroma));
    const uint8x8_t odd = vqmovun_s16(vaddq_s16(odd_luma, chroma));
    return vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
}

void to_rgb(const YuvRow &row, const YuvWeights &weights, size_t width, uint8_t *rgb) {
    for (size_t x = 0; x < width; x += 16) {
        uint8x8x2_t chroma;
        if (row.paired) {
            chroma = vld2_u8(row.u + x);
        } else {
            chroma.val[0] = vld1_u8(row.u + x / 2);
            chroma.val[1] = vld1_u8(row.v + x / 2);
        }
        const int16x8_t u = centered(chroma.val[0], kChromaOffset);
        const int16x8_t v = centered(chroma.val[1], kChromaOffset);
        const uint8x8x2_t luma = vld2_u8(row.luma + x);
        const int16x8_t even = times(centered(luma.val[0], weights.luma_offset), weights.luma);
        const int16x8_t odd = times(centered(luma.val[1], weights.luma_offset), weights.luma);
        const int16x8_t green = vaddq_s16(times(u, weights.green_u), times(v, weights.green_v));
        uint8x16x3_t pixels;
        pixels.val[0] = channel_of(even, odd, times(v, weights.red_v));
        pixels.val[1] = channel_of(even, odd, green);
        pixels.val[2] = channel_of(even, odd, times(u, weights.blue_u));
        vst3q_u8(rgb + x * kChannels, pixels);
    }
}

}  // namespace

const Kernels neon_kernels{"neon", kBlock, arrange, narrow, blend, to_rgb};

}  // namespace llamavid

#endif
