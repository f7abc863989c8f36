// llamavid_pixels_from_rgb: one walk down the picture that resizes, crops and normalizes.
//
// Equal to runtime/pixels.py bit for bit; the arithmetic and its reasons are there, in
// Note [PIL's resize]. The two loops where the time goes are the `narrow` and `blend` of kernels.h.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

#include "axis.h"
#include "kernels.h"
#include "llamavid/runtime.h"

namespace {

using namespace llamavid;

struct Picture {
    const uint8_t *rgb;  // [height, width, 3], rows `row_stride_bytes` apart
    int32_t height;
    int32_t width;
    ptrdiff_t row_stride_bytes;
};

using Table = std::array<std::array<float, 256>, kChannels>;

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

// Hands out source rows that may be read kReadAhead bytes past their end. The rows that lie last in
// memory are copied for that; what follows the others is the picture itself.
class ReadableRows {
  public:
    explicit ReadableRows(const Picture &picture) : picture_(picture) {}

    // Good until four more rows are asked for.
    const uint8_t *at(int32_t row) {
        const ptrdiff_t stride = picture_.row_stride_bytes;
        const uint8_t *samples = picture_.rgb + row * stride;
        const ptrdiff_t behind = stride < 0 ? row * -stride : (picture_.height - 1 - row) * stride;
        if (behind >= static_cast<ptrdiff_t>(kReadAhead)) return samples;
        const size_t row_bytes = static_cast<size_t>(picture_.width) * kChannels;
        const size_t pitch = row_bytes + kReadAhead;
        copies_.resize(kRowsAtOnce * pitch);
        uint8_t *copy = &copies_[static_cast<size_t>(row) % kRowsAtOnce * pitch];
        std::memcpy(copy, samples, row_bytes);
        return copy;
    }

  private:
    const Picture picture_;
    std::vector<uint8_t> copies_;
};

// The narrowed source rows that the next output rows need: row r lies at r % its length.
class NarrowRows {
  public:
    NarrowRows(const Picture &picture, const Axis &rows, const Axis &columns, const Kernels &kernels)
        : source_(picture),
          columns_(columns),
          kernels_(kernels),
          end_(rows.spans.back().first + rows.spans.back().count),
          next_(rows.spans.front().first),
          length_(static_cast<size_t>(rows.taps) + kRowsAtOnce),
          // A byte more for what `narrow` writes past the end.
          pitch_((columns.spans.size() * kChannels + kPitchBytes) / kPitchBytes * kPitchBytes),
          narrowed_(length_ * pitch_) {}

    // The rows of a span, filled up with the last one to a multiple of kRowsAtOnce.
    void reach(Span span, std::vector<const uint8_t *> &rows) {
        while (next_ < span.first + span.count) narrow_next();
        rows.clear();
        for (int32_t row = span.first; row < span.first + span.count; ++row) rows.push_back(at(row));
        while (rows.size() % kRowsAtOnce) rows.push_back(rows.back());
    }

    size_t pitch() const { return pitch_; }

  private:
    uint8_t *at(int32_t row) { return &narrowed_[static_cast<size_t>(row) % length_ * pitch_]; }

    // Every row from the first span to the last is in some span, so reading ahead costs nothing.
    void narrow_next() {
        const uint8_t *from[kRowsAtOnce];
        uint8_t *to[kRowsAtOnce];
        for (size_t i = 0; i < kRowsAtOnce; ++i) {
            const int32_t row = std::min(next_ + static_cast<int32_t>(i), end_ - 1);
            from[i] = source_.at(row);
            to[i] = at(row);
        }
        kernels_.narrow(from, columns_, to);
        next_ += kRowsAtOnce;
    }

    ReadableRows source_;
    const Axis &columns_;
    const Kernels &kernels_;
    const int32_t end_;
    int32_t next_;
    const size_t length_, pitch_;
    std::vector<uint8_t> narrowed_;
};

// A row of bytes [size, 3] to a row of each of the three planes, whose first is `red`.
void write_row(const uint8_t *rgb, size_t size, const Table &table, float *red) {
    float *green = red + size * size, *blue = green + size * size;
    for (size_t x = 0; x < size; ++x, rgb += kChannels) {
        red[x] = table[0][rgb[0]];
        green[x] = table[1][rgb[1]];
        blue[x] = table[2][rgb[2]];
    }
}

void write_pixels(const Picture &picture, const Axis &rows, const Axis &columns, const Kernels &kernels,
                  const Table &table, float *pixels) {
    const size_t size = columns.spans.size();
    NarrowRows narrow(picture, rows, columns, kernels);
    std::vector<const uint8_t *> span_rows;
    std::vector<uint8_t> resized(narrow.pitch());
    for (size_t y = 0; y < size; ++y) {
        // 1) narrow the source rows that this span adds
        narrow.reach(rows.spans[y], span_rows);
        // 2) sum them
        kernels.blend(span_rows.data(), rows.weights_of(y), rows.spans[y].count, resized.size(),
                      resized.data());
        // 3) bytes to floats, one plane a channel
        write_row(resized.data(), size, table, pixels + y * size);
    }
}

bool is_side(int32_t side) { return 1 <= side && side <= LLAMAVID_MAX_SIDE; }

llamavid_status pixels_by(const Kernels *kernels, const Picture &picture, int32_t image_size,
                          const float mean[3], const float std[3], float *pixels) {
    if (!kernels) return LLAMAVID_BAD_SIMD;
    if (!picture.rgb || !mean || !std || !pixels) return LLAMAVID_NULL_POINTER;
    const int32_t height = picture.height, width = picture.width;
    if (!is_side(height) || !is_side(width) || !is_side(image_size)) return LLAMAVID_BAD_SIZE;
    const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(width) * kChannels;
    const ptrdiff_t stride = picture.row_stride_bytes;
    if (stride < row_bytes && stride > -row_bytes) return LLAMAVID_BAD_STRIDE;
    if (!(std[0] > 0.0f && std[1] > 0.0f && std[2] > 0.0f)) return LLAMAVID_BAD_STD;

    try {
        const int64_t shorter = std::min(height, width);
        const Axis rows = axis_of(height, int64_t{image_size} * height / shorter, image_size, *kernels);
        const Axis columns = axis_of(width, int64_t{image_size} * width / shorter, image_size, *kernels);
        write_pixels(picture, rows, columns, *kernels, table_of(mean, std), pixels);
    } catch (const std::exception &) {  // nothing above throws but an allocation
        return LLAMAVID_OUT_OF_MEMORY;
    }
    return LLAMAVID_OK;
}

}  // namespace

llamavid_status llamavid_pixels_from_rgb(const uint8_t *rgb, int32_t height, int32_t width,
                                         ptrdiff_t row_stride_bytes, int32_t image_size, const float mean[3],
                                         const float std[3], float *pixels) {
    const Picture picture{rgb, height, width, row_stride_bytes};
    return pixels_by(chosen_kernels(), picture, image_size, mean, std, pixels);
}

llamavid_status llamavid_pixels_from_rgb_by(const char *simd, const uint8_t *rgb, int32_t height,
                                            int32_t width, ptrdiff_t row_stride_bytes, int32_t image_size,
                                            const float mean[3], const float std[3], float *pixels) {
    if (!simd) return LLAMAVID_NULL_POINTER;
    const Picture picture{rgb, height, width, row_stride_bytes};
    return pixels_by(kernels_named(simd), picture, image_size, mean, std, pixels);
}
