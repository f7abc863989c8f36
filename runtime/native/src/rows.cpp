#include "rows.h"

#include <cstring>

namespace llamavid {
namespace {

constexpr YuvWeights kYuvWeights[2][2] = {  // [matrix][full range], as in runtime/yuv.py
    {{128, 9539, 13075, -3209, -6660, 16525}, {0, 8192, 11485, -2819, -5850, 14516}},
    {{128, 9539, 14686, -1747, -4366, 17305}, {0, 8192, 12901, -1534, -3835, 15201}},
};

YuvWeights yuv_weights_of(const llamavid_picture &picture) {
    if (picture.format == LLAMAVID_RGB24) return {};
    return kYuvWeights[picture.matrix][picture.full_range != 0];
}

// What a plane must hold; a format's other planes have no rows.
struct PlaneSize {
    int32_t height;
    size_t row_bytes;
};

PlaneSize plane_size(const llamavid_picture &picture, size_t plane) {
    const size_t width = static_cast<size_t>(picture.width), half_width = (width + 1) / 2;
    const int32_t half_height = (picture.height + 1) / 2;
    if (plane == 0) return {picture.height, picture.format == LLAMAVID_RGB24 ? width * kChannels : width};
    if (picture.format == LLAMAVID_YUV420P) return {half_height, half_width};
    if (picture.format == LLAMAVID_NV12 && plane == 1) return {half_height, half_width * 2};
    return {0, 0};
}

bool is_side(int32_t side) { return 1 <= side && side <= LLAMAVID_MAX_SIDE; }

}  // namespace

llamavid_status checked(const llamavid_picture &picture) {
    const int32_t format = picture.format, matrix = picture.matrix;
    if (format < LLAMAVID_RGB24 || format > LLAMAVID_NV12) return LLAMAVID_BAD_FORMAT;
    if (format != LLAMAVID_RGB24 && matrix != LLAMAVID_BT601 && matrix != LLAMAVID_BT709) {
        return LLAMAVID_BAD_FORMAT;
    }
    if (!is_side(picture.height) || !is_side(picture.width)) return LLAMAVID_BAD_SIZE;
    for (size_t plane = 0; plane < 3; ++plane) {
        const PlaneSize size = plane_size(picture, plane);
        if (size.height == 0) continue;
        if (!picture.planes[plane]) return LLAMAVID_NULL_POINTER;
        const ptrdiff_t row_bytes = static_cast<ptrdiff_t>(size.row_bytes);
        const ptrdiff_t stride = picture.row_stride_bytes[plane];
        if (stride < row_bytes && stride > -row_bytes) return LLAMAVID_BAD_STRIDE;
    }
    return LLAMAVID_OK;
}

const uint8_t *ReadablePlane::at(int32_t row) {
    const uint8_t *samples = samples_ + row * stride_;
    const ptrdiff_t behind = stride_ < 0 ? row * -stride_ : (height_ - 1 - row) * stride_;
    if (behind >= static_cast<ptrdiff_t>(kReadAhead)) return samples;
    const size_t pitch = row_bytes_ + kReadAhead;
    copies_.resize(kRowsAtOnce * pitch);
    uint8_t *copy = &copies_[static_cast<size_t>(row) % kRowsAtOnce * pitch];
    std::memcpy(copy, samples, row_bytes_);
    return copy;
}

SourceRows::SourceRows(const llamavid_picture &picture, Span first, Span last, const Kernels &kernels)
    : format_(picture.format),
      weights_(yuv_weights_of(picture)),
      left_(static_cast<size_t>(first.first) / 2 * 2),  // where a chroma sample begins
      right_(static_cast<size_t>(last.first + last.count)),
      pitch_((right_ * kChannels + kWriteAhead + kPitchBytes - 1) / kPitchBytes * kPitchBytes),
      kernels_(kernels) {
    static_assert(kWriteAhead >= kReadAhead, "what `narrow` reads past a row's end is there");
    for (size_t plane = 0; plane < 3; ++plane) {
        const PlaneSize size = plane_size(picture, plane);
        if (size.height == 0) continue;
        planes_.emplace_back(picture.planes[plane], size.height, size.row_bytes,
                             picture.row_stride_bytes[plane]);
    }
    if (format_ != LLAMAVID_RGB24) rgb_.resize(kRowsAtOnce * pitch_);
}

const uint8_t *SourceRows::at(int32_t row) {
    const uint8_t *samples = planes_[0].at(row);
    if (format_ == LLAMAVID_RGB24) return samples;
    const bool paired = format_ == LLAMAVID_NV12;
    const uint8_t *u = planes_[1].at(row / 2);
    const uint8_t *v = paired ? u + 1 : planes_[2].at(row / 2);
    const size_t chroma = paired ? left_ : left_ / 2;
    uint8_t *rgb = &rgb_[static_cast<size_t>(row) % kRowsAtOnce * pitch_];
    kernels_.to_rgb({samples + left_, u + chroma, v + chroma, paired}, weights_, right_ - left_,
                    rgb + left_ * kChannels);
    return rgb;
}

}  // namespace llamavid
