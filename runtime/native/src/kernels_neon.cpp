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

}  // namespace

const Kernels neon_kernels{"neon", kBlock, arrange, narrow, blend};

}  // namespace llamavid

#endif
