// Any picture of any form: either refused, or prepared without a byte read or written outside it, to the same
// bits by all instructions of this processor.

#include <vector>

#include "bytes.h"
#include "llamavid/runtime.h"

namespace {

constexpr int32_t kSmall = 40;                // of most sides
constexpr size_t kMostBytes = size_t{1} << 22;  // of a picture or its pixels: more would only be slow

// A plane in a block of its very own size, so that the address sanitizer sees every step past it.
struct Plane {
    std::vector<uint8_t> bytes;
    const uint8_t *top = nullptr;
};

// False where no block could hold it, or would want to.
bool allocate(Plane &plane, Bytes &input, int64_t rows, int64_t row_bytes, int64_t stride) {
    const int64_t distance = stride < 0 ? -stride : stride;
    if (rows < 1 || row_bytes < 1 || rows > int64_t{1} << 20 || row_bytes > int64_t{1} << 20) return false;
    if (distance > int64_t{1} << 20) return false;
    const int64_t size = (rows - 1) * distance + row_bytes;
    if (size > static_cast<int64_t>(kMostBytes)) return false;
    plane.bytes.resize(static_cast<size_t>(size));
    input.fill(plane.bytes.data(), plane.bytes.size());
    plane.top = plane.bytes.data() + (stride < 0 ? (rows - 1) * distance : 0);
    return true;
}

ptrdiff_t stride_of(Bytes &input, int64_t row_bytes) {
    const int kind = input.below(8);
    if (kind == 0) return input.take<int16_t>();
    const int64_t padded = row_bytes + (kind < 4 ? 0 : input.below(70));
    return static_cast<ptrdiff_t>(kind % 2 ? padded : -padded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Bytes input(data, size);
    llamavid_picture picture{};
    const int format = input.below(4);
    picture.format = static_cast<llamavid_format>(format == 3 ? input.take<int32_t>() : format);
    picture.height = input.side(kSmall);
    picture.width = input.side(kSmall);
    picture.matrix = static_cast<llamavid_matrix>(input.below(3));
    picture.full_range = input.below(2);
    const int32_t image_size = input.side(kSmall);
    const auto dtype = static_cast<llamavid_dtype>(input.below(3));
    float mean[3], std[3];
    for (float &value : mean) value = input.below(4) ? 0.45f : input.take<float>();
    for (float &value : std) value = input.below(4) ? 0.27f : input.take<float>();

    const int64_t height = picture.height, width = picture.width;
    const int64_t half_height = (height + 1) / 2, half_width = (width + 1) / 2;
    const bool is_rgb = picture.format == LLAMAVID_RGB24, is_nv12 = picture.format == LLAMAVID_NV12;
    const int64_t rows[3] = {height, half_height, half_height};
    const int64_t row_bytes[3] = {is_rgb ? width * 3 : width, half_width * (is_nv12 ? 2 : 1), half_width};
    for (int i = 0; i < 3; ++i) picture.row_stride_bytes[i] = stride_of(input, row_bytes[i]);
    const int given = input.below(16) ? 3 : input.below(3);  // planes; the others are NULL
    Plane planes[3];
    const int wanted = is_rgb ? 1 : is_nv12 ? 2 : 3;
    const bool is_known = picture.format >= LLAMAVID_RGB24 && picture.format <= LLAMAVID_NV12;
    bool is_there = is_known;
    for (int i = 0; i < wanted && i < given; ++i) {
        is_there = allocate(planes[i], input, rows[i], row_bytes[i], picture.row_stride_bytes[i]) && is_there;
        picture.planes[i] = planes[i].top;
    }
    const bool fits = image_size >= 1 && image_size <= 256;
    if (!is_there || !fits) {  // it must be refused before a sample is read: one byte stands for all
        static const uint8_t byte = 0;
        for (int i = 0; i < given; ++i) picture.planes[i] = &byte;
        if (is_known && height >= 1 && width >= 1 && image_size >= 1) return 0;  // too large to try
    }

    const size_t side = fits ? static_cast<size_t>(image_size) : 0;
    const size_t pixels_bytes = 3 * side * side * (dtype == LLAMAVID_FLOAT16 ? 2 : 4);
    std::vector<uint8_t> first;
    llamavid_status expected = LLAMAVID_OK;
    for (size_t i = 0; const char *simd = llamavid_simd_at(i); ++i) {
        std::vector<uint8_t> pixels(fits ? pixels_bytes : 1);  // not NULL
        const llamavid_status status =
            llamavid_pixels_from_picture_by(simd, &picture, image_size, mean, std, dtype, pixels.data());
        if (i == 0) {
            expected = status;
            first = pixels;
            continue;
        }
        HOLDS(status == expected);
        if (status == LLAMAVID_OK) HOLDS(pixels == first);
    }
    return 0;
}
