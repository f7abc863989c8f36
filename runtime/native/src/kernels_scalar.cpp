// The plain version, always there: what every other one is held to.

#include <algorithm>

#include "kernels.h"

namespace llamavid {
namespace {

uint8_t rounded_byte(int32_t sum) {  // >> keeps the sign, with every compiler there is
    return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

void narrow_row(const uint8_t *row, const Axis &columns, uint8_t *narrowed) {
    for (size_t x = 0; x < columns.spans.size(); ++x) {
        const Span span = columns.spans[x];
        const uint8_t *sample = row + static_cast<ptrdiff_t>(span.first) * kChannels;
        const int32_t *weight = columns.weights_of(x);
        int32_t red = kHalf, green = kHalf, blue = kHalf;
        for (int32_t tap = 0; tap < span.count; ++tap) {
            red += sample[0] * weight[tap];
            green += sample[1] * weight[tap];
            blue += sample[2] * weight[tap];
            sample += kChannels;
        }
        narrowed[0] = rounded_byte(red);
        narrowed[1] = rounded_byte(green);
        narrowed[2] = rounded_byte(blue);
        narrowed += kChannels;
    }
}

void arrange(int32_t *) {}

void narrow(const uint8_t *const rows[kRowsAtOnce], const Axis &columns,
            uint8_t *const narrowed[kRowsAtOnce]) {
    for (size_t row = 0; row < kRowsAtOnce; ++row) narrow_row(rows[row], columns, narrowed[row]);
}

void blend(const uint8_t *const *rows, const int32_t *weights, int32_t count, size_t bytes,
           uint8_t *blended) {
    for (size_t start = 0; start < bytes; start += kPitchBytes) {
        int32_t sums[kPitchBytes];
        std::fill(sums, sums + kPitchBytes, kHalf);
        for (int32_t tap = 0; tap < count; ++tap) {
            const uint8_t *samples = rows[tap] + start;
            for (size_t i = 0; i < kPitchBytes; ++i) sums[i] += samples[i] * weights[tap];
        }
        for (size_t i = 0; i < kPitchBytes; ++i) blended[start + i] = rounded_byte(sums[i]);
    }
}

uint8_t byte_of(int32_t value) { return static_cast<uint8_t>(std::clamp(value, 0, 255)); }

void to_rgb(const YuvRow &row, const YuvWeights &weights, size_t width, uint8_t *rgb) {
    const size_t step = row.paired ? 2 : 1;
    for (size_t x = 0; x < width; ++x, rgb += kChannels) {
        const int32_t luma = (row.luma[x] * 8 - weights.luma_offset) * weights.luma >> 16;
        const int32_t u = row.u[x / 2 * step] * 8 - kChromaOffset;
        const int32_t v = row.v[x / 2 * step] * 8 - kChromaOffset;
        rgb[0] = byte_of(luma + (v * weights.red_v >> 16));
        rgb[1] = byte_of(luma + (u * weights.green_u >> 16) + (v * weights.green_v >> 16));
        rgb[2] = byte_of(luma + (u * weights.blue_u >> 16));
    }
}

}  // namespace

const Kernels scalar_kernels{"scalar", 1, arrange, narrow, blend, to_rgb};

}  // namespace llamavid
