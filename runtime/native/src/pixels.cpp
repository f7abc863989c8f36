// llamavid_pixels_from_rgb: one walk down the picture that resizes, crops and normalizes.
//
// Equal to runtime/pixels.py bit for bit; the arithmetic and its reasons are there, in
// Note [PIL's resize]. Each step on a double stands alone, in that file's order: compile
// without contraction (-ffp-contract=off) and without -ffast-math.
//
// `narrow_row` and `add_weighted` are where the time goes, and plain functions over plain
// memory so that another instruction set can take their place.

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "llamavid/runtime.h"

#ifdef __FAST_MATH__
#error "compile without -ffast-math: the result would not be PIL's"
#endif
static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16, "float and double must round at every step");

namespace {

constexpr int kChannels = 3;
constexpr int kFractionBits = 22;
constexpr int32_t kHalf = 1 << (kFractionBits - 1);  // a sum fits: its weights' sizes add up to less than 2
constexpr double kKernelReach = 2.0;  // of the bicubic kernel to either side, in samples

// The source samples that one output sample is made of: `count` of them, from `first`.
struct Span {
    int32_t first;
    int32_t count;
};

// One direction of the resize, for the output samples that the crop keeps.
// Neither end of the spans ever moves back.
struct Axis {
    std::vector<Span> spans;       // [keep]
    std::vector<int32_t> weights;  // [keep, taps], times 2^22
    int32_t taps;                  // the longest span, at least

    const int32_t *weights_of(size_t output) const { return &weights[output * static_cast<size_t>(taps)]; }
};

struct Picture {
    const uint8_t *rgb;  // [height, width, 3], rows `row_stride_bytes` apart
    int32_t height;
    int32_t width;
    ptrdiff_t row_stride_bytes;
};

using Table = std::array<std::array<float, 256>, kChannels>;

// Keys' kernel with a = -0.5, in PIL's order of operations.
double bicubic(double offset) {
    const double x = std::abs(offset);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    if (x < kKernelReach) return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return 0.0;
}

int32_t fixed_point(double weight) {
    return static_cast<int32_t>(weight * (1 << kFractionBits) + (weight < 0.0 ? -0.5 : 0.5));
}

// What the centre `keep` of `resized` samples are made of.
Axis axis_of(int32_t source, int64_t resized, int32_t keep) {
    const double scale = static_cast<double>(source) / static_cast<double>(resized);
    const double stretch = std::max(scale, 1.0);
    const double reach = kKernelReach * stretch;
    const double inverse = 1.0 / stretch;
    const int32_t longest = static_cast<int32_t>(std::ceil(reach)) * 2 + 1;
    const int64_t skipped = (resized - keep) / 2;

    Axis axis{{}, {}, std::min(longest, source)};
    axis.spans.reserve(static_cast<size_t>(keep));
    axis.weights.resize(static_cast<size_t>(keep) * static_cast<size_t>(axis.taps));
    std::vector<double> weights(static_cast<size_t>(axis.taps));
    for (int32_t i = 0; i < keep; ++i) {
        const double center = (static_cast<double>(skipped + i) + 0.5) * scale;
        const int32_t first = std::max(static_cast<int32_t>(center - reach + 0.5), 0);
        const int32_t end = std::min(static_cast<int32_t>(center + reach + 0.5), source);
        const size_t count = static_cast<size_t>(end - first);
        double sum = 0.0;
        for (size_t tap = 0; tap < count; ++tap) {
            const double sample = static_cast<double>(first) + static_cast<double>(tap);
            weights[tap] = bicubic((sample - center + 0.5) * inverse);
            sum += weights[tap];
        }
        int32_t *fixed = &axis.weights[static_cast<size_t>(i) * static_cast<size_t>(axis.taps)];
        for (size_t tap = 0; tap < count; ++tap) fixed[tap] = fixed_point(weights[tap] / sum);
        axis.spans.push_back({first, end - first});
    }
    return axis;
}

// The processor's arithmetic for every channel and byte: to 0..1 in double, then in float.
Table table_of(const float mean[kChannels], const float std[kChannels]) {
    Table table;
    for (size_t channel = 0; channel < kChannels; ++channel) {
        for (size_t byte = 0; byte < 256; ++byte) {
            const float unit = static_cast<float>(static_cast<double>(byte) * (1.0 / 255.0));
            table[channel][byte] = (unit - mean[channel]) / std[channel];
        }
    }
    return table;
}

uint8_t rounded_byte(int32_t sum) {  // >> keeps the sign, with every compiler there is
    return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

// A source row [width, 3] to the kept columns [keep, 3].
void narrow_row(const uint8_t *row, const Axis &columns, uint8_t *narrow) {
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
        narrow[0] = rounded_byte(red);
        narrow[1] = rounded_byte(green);
        narrow[2] = rounded_byte(blue);
        narrow += kChannels;
    }
}

void add_weighted(const uint8_t *row, int32_t weight, size_t count, int32_t *sums) {
    for (size_t i = 0; i < count; ++i) sums[i] += row[i] * weight;
}

// Narrows each source row once, keeping the few that the next output rows still need.
void write_pixels(const Picture &picture, const Axis &rows, const Axis &columns, const Table &table,
                  float *pixels) {
    const size_t size = columns.spans.size();
    const size_t row_bytes = size * kChannels;
    std::vector<uint8_t> narrow(static_cast<size_t>(rows.taps) * row_bytes);  // source row r lies at r % taps
    std::vector<int32_t> sums(row_bytes);
    const auto narrow_at = [&](int32_t row) {
        return &narrow[static_cast<size_t>(row % rows.taps) * row_bytes];
    };

    int32_t next = 0;  // the first source row that no span has reached
    for (size_t y = 0; y < size; ++y) {
        // 1) narrow the source rows that this span adds
        const Span span = rows.spans[y];
        for (next = std::max(next, span.first); next < span.first + span.count; ++next) {
            narrow_row(picture.rgb + next * picture.row_stride_bytes, columns, narrow_at(next));
        }
        // 2) sum them
        std::fill(sums.begin(), sums.end(), kHalf);
        for (int32_t tap = 0; tap < span.count; ++tap) {
            add_weighted(narrow_at(span.first + tap), rows.weights_of(y)[tap], row_bytes, sums.data());
        }
        // 3) bytes to floats, one plane a channel
        for (size_t channel = 0; channel < kChannels; ++channel) {
            float *plane_row = pixels + (channel * size + y) * size;
            for (size_t x = 0; x < size; ++x) {
                plane_row[x] = table[channel][rounded_byte(sums[x * kChannels + channel])];
            }
        }
    }
}

bool is_side(int32_t side) { return 1 <= side && side <= LLAMAVID_MAX_SIDE; }

}  // namespace

llamavid_status llamavid_pixels_from_rgb(const uint8_t *rgb, int32_t height, int32_t width,
                                         ptrdiff_t row_stride_bytes, int32_t image_size, const float mean[3],
                                         const float std[3], float *pixels) {
    if (!rgb || !mean || !std || !pixels) return LLAMAVID_NULL_POINTER;
    if (!is_side(height) || !is_side(width) || !is_side(image_size)) return LLAMAVID_BAD_SIZE;
    const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(width) * kChannels;
    if (row_stride_bytes < row_bytes && row_stride_bytes > -row_bytes) return LLAMAVID_BAD_STRIDE;
    if (!(std[0] > 0.0f && std[1] > 0.0f && std[2] > 0.0f)) return LLAMAVID_BAD_STD;

    try {
        const int64_t shorter = std::min(height, width);
        const Axis rows = axis_of(height, int64_t{image_size} * height / shorter, image_size);
        const Axis columns = axis_of(width, int64_t{image_size} * width / shorter, image_size);
        const Picture picture{rgb, height, width, row_stride_bytes};
        write_pixels(picture, rows, columns, table_of(mean, std), pixels);
    } catch (const std::exception &) {  // nothing above throws but an allocation
        return LLAMAVID_OUT_OF_MEMORY;
    }
    return LLAMAVID_OK;
}
