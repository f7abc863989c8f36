// llamavid_pixels_from_picture: one walk down the picture that resizes, crops and normalizes.
//
// Equal to runtime/pixels.py and runtime/yuv.py bit for bit; the arithmetic and its reasons are there, in
// Note [PIL's resize] and Note [YUV to RGB]. The loops where the time goes are the functions of `Kernels`.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <type_traits>
#include <vector>

#include "axis.h"
#include "half.h"
#include "kernels.h"
#include "llamavid/runtime.h"
#include "rows.h"

namespace {

using namespace llamavid;

template <typename Sample>  // float or Half
using Table = std::array<std::array<Sample, 256>, kChannels>;

template <typename Sample>
Sample sample_of(float value) {
    if constexpr (std::is_same_v<Sample, Half>) return half_of(value);
    else return value;
}

// The processor's arithmetic for every channel and byte: to 0..1 in double, then in float.
template <typename Sample>
Table<Sample> table_of(const float mean[kChannels], const float std[kChannels]) {
    Table<Sample> table;
    for (size_t channel = 0; channel < kChannels; ++channel) {
        for (size_t byte = 0; byte < 256; ++byte) {
            const float unit = static_cast<float>(static_cast<double>(byte) * (1.0 / 255.0));
            table[channel][byte] = sample_of<Sample>((unit - mean[channel]) / std[channel]);
        }
    }
    return table;
}

// The narrowed source rows that the next output rows need: row r lies at r % its length.
class NarrowRows {
  public:
    NarrowRows(const llamavid_picture &picture, const Axis &rows, const Axis &columns, const Kernels &kernels)
        : source_(picture, columns.spans.front(), columns.spans.back(), kernels),
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

    SourceRows source_;
    const Axis &columns_;
    const Kernels &kernels_;
    const int32_t end_;
    int32_t next_;
    const size_t length_, pitch_;
    std::vector<uint8_t> narrowed_;
};

// A row of bytes [size, 3] to a row of each of the three planes, whose first is `red`.
template <typename Sample>
void write_row(const uint8_t *rgb, size_t size, const Table<Sample> &table, Sample *red) {
    Sample *green = red + size * size, *blue = green + size * size;
    for (size_t x = 0; x < size; ++x, rgb += kChannels) {
        red[x] = table[0][rgb[0]];
        green[x] = table[1][rgb[1]];
        blue[x] = table[2][rgb[2]];
    }
}

template <typename Sample>
void write_pixels(const llamavid_picture &picture, const Axis &rows, const Axis &columns,
                  const Kernels &kernels, const Table<Sample> &table, Sample *pixels) {
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
        // 3) bytes to samples, one plane a channel
        write_row(resized.data(), size, table, pixels + y * size);
    }
}

llamavid_status pixels_by(const Kernels *kernels, const llamavid_picture *picture, int32_t image_size,
                          const float mean[3], const float std[3], llamavid_dtype dtype, void *pixels) {
    if (!kernels) return LLAMAVID_BAD_SIMD;
    if (!picture || !mean || !std || !pixels) return LLAMAVID_NULL_POINTER;
    const llamavid_status status = checked(*picture);
    if (status != LLAMAVID_OK) return status;
    if (dtype != LLAMAVID_FLOAT32 && dtype != LLAMAVID_FLOAT16) return LLAMAVID_BAD_FORMAT;
    if (image_size < 1 || image_size > LLAMAVID_MAX_SIDE) return LLAMAVID_BAD_SIZE;
    if (!(std[0] > 0.0f && std[1] > 0.0f && std[2] > 0.0f)) return LLAMAVID_BAD_STD;

    try {
        const int32_t height = picture->height, width = picture->width;
        const int64_t shorter = std::min(height, width);
        const Axis rows = axis_of(height, int64_t{image_size} * height / shorter, image_size, *kernels);
        const Axis columns = axis_of(width, int64_t{image_size} * width / shorter, image_size, *kernels);
        if (dtype == LLAMAVID_FLOAT32) {
            write_pixels(*picture, rows, columns, *kernels, table_of<float>(mean, std),
                         static_cast<float *>(pixels));
        } else {
            write_pixels(*picture, rows, columns, *kernels, table_of<Half>(mean, std),
                         static_cast<Half *>(pixels));
        }
    } catch (const std::exception &) {  // nothing above throws but an allocation
        return LLAMAVID_OUT_OF_MEMORY;
    }
    return LLAMAVID_OK;
}

llamavid_picture rgb_picture(const uint8_t *rgb, int32_t height, int32_t width, ptrdiff_t row_stride_bytes) {
    llamavid_picture picture{};
    picture.format = LLAMAVID_RGB24;
    picture.height = height;
    picture.width = width;
    picture.planes[0] = rgb;
    picture.row_stride_bytes[0] = row_stride_bytes;
    return picture;
}

}  // namespace

llamavid_status llamavid_pixels_from_picture(const llamavid_picture *picture, int32_t image_size,
                                             const float mean[3], const float std[3], llamavid_dtype dtype,
                                             void *pixels) {
    return pixels_by(chosen_kernels(), picture, image_size, mean, std, dtype, pixels);
}

llamavid_status llamavid_pixels_from_picture_by(const char *simd, const llamavid_picture *picture,
                                                int32_t image_size, const float mean[3], const float std[3],
                                                llamavid_dtype dtype, void *pixels) {
    if (!simd) return LLAMAVID_NULL_POINTER;
    return pixels_by(kernels_named(simd), picture, image_size, mean, std, dtype, pixels);
}

llamavid_status llamavid_pixels_from_rgb(const uint8_t *rgb, int32_t height, int32_t width,
                                         ptrdiff_t row_stride_bytes, int32_t image_size, const float mean[3],
                                         const float std[3], float *pixels) {
    const llamavid_picture picture = rgb_picture(rgb, height, width, row_stride_bytes);
    return llamavid_pixels_from_picture(&picture, image_size, mean, std, LLAMAVID_FLOAT32, pixels);
}

llamavid_status llamavid_pixels_from_rgb_by(const char *simd, const uint8_t *rgb, int32_t height,
                                            int32_t width, ptrdiff_t row_stride_bytes, int32_t image_size,
                                            const float mean[3], const float std[3], float *pixels) {
    const llamavid_picture picture = rgb_picture(rgb, height, width, row_stride_bytes);
    return llamavid_pixels_from_picture_by(simd, &picture, image_size, mean, std, LLAMAVID_FLOAT32, pixels);
}
