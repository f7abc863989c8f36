// Pixels in the Python face: runtime/pixels.py and runtime/yuv.py call these.

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "module.h"

namespace nb = nanobind;

namespace {

using Pictures = nb::ndarray<const uint8_t, nb::shape<-1, -1, -1, 3>, nb::c_contig, nb::device::cpu>;
using PerChannel = nb::ndarray<const float, nb::shape<3>, nb::c_contig, nb::device::cpu>;
using Pixels = nb::ndarray<nb::shape<-1, 3, -1, -1>, nb::c_contig, nb::device::cpu>;  // float32 or float16

int32_t image_size_of(const Pixels &pixels, size_t pictures) {
    if (pixels.shape(0) != pictures || pixels.shape(3) != pixels.shape(2)) {
        throw nb::value_error("pixels is not [n, 3, S, S], n being the number of pictures");
    }
    return side(pixels.shape(2));
}

std::vector<std::string> simd_here() {
    std::vector<std::string> names;
    while (const char *name = llamavid_simd_at(names.size())) names.emplace_back(name);
    return names;
}

// `simd` by name: LLAMAVID_SIMD is read in Python, at every call.
void pixels_from_rgb(Pictures rgb, PerChannel mean, PerChannel std, Pixels pixels, const std::string &simd) {
    const int32_t size = image_size_of(pixels, rgb.shape(0));
    const llamavid_dtype dtype = dtype_of(pixels);
    llamavid_picture picture{};
    picture.format = LLAMAVID_RGB24;
    picture.height = side(rgb.shape(1));
    picture.width = side(rgb.shape(2));
    picture.row_stride_bytes[0] = ptrdiff_t{picture.width} * 3;
    const size_t picture_bytes = rgb.shape(1) * rgb.shape(2) * rgb.shape(3);
    const size_t pixels_bytes = pixels.nbytes() / (rgb.shape(0) ? rgb.shape(0) : 1);
    auto *to = static_cast<uint8_t *>(pixels.data());
    llamavid_status status = LLAMAVID_OK;
    {
        nb::gil_scoped_release others_may_run;
        for (size_t i = 0; i < rgb.shape(0) && status == LLAMAVID_OK; ++i) {
            picture.planes[0] = rgb.data() + i * picture_bytes;
            status = llamavid_pixels_from_picture_by(simd.c_str(), &picture, size, mean.data(), std.data(),
                                                     dtype, to + i * pixels_bytes);
        }
    }
    check(status);
}

// Of a plane [height, width] or [height, width, 2]; a side of one has no distance of its own.
ptrdiff_t row_stride_of(const Plane &plane, size_t height, size_t width, size_t samples) {
    const bool shaped = plane.ndim() == (samples == 1 ? 2u : 3u) && plane.shape(0) == height &&
                        plane.shape(1) == width && (samples == 1 || plane.shape(2) == samples);
    if (!shaped) throw nb::value_error("planes are not [H, W] and half of that, rounded up");
    const bool packed = (samples == 1 || plane.stride(2) == 1) &&
                        (width == 1 || plane.stride(1) == static_cast<int64_t>(samples));
    if (!packed) throw nb::value_error("a plane's rows are not packed");
    return static_cast<ptrdiff_t>(height == 1 ? static_cast<int64_t>(width * samples) : plane.stride(0));
}

void pixels_from_yuv420(const std::vector<Plane> &planes, int matrix, bool full_range, PerChannel mean,
                        PerChannel std, Pixels pixels, const std::string &simd) {
    const llamavid_picture picture = yuv420_picture(planes, matrix, full_range);
    const int32_t size = image_size_of(pixels, 1);
    const llamavid_dtype dtype = dtype_of(pixels);
    void *to = pixels.data();
    llamavid_status status = LLAMAVID_OK;
    {
        nb::gil_scoped_release others_may_run;
        status = llamavid_pixels_from_picture_by(simd.c_str(), &picture, size, mean.data(), std.data(), dtype,
                                                 to);
    }
    check(status);
}

}  // namespace

int32_t side(size_t length) {
    if (length > LLAMAVID_MAX_SIDE) throw nb::value_error(llamavid_status_text(LLAMAVID_BAD_SIZE));
    return static_cast<int32_t>(length);
}

llamavid_picture yuv420_picture(const std::vector<Plane> &planes, int matrix, bool full_range) {
    const bool paired = planes.size() == 2;
    if ((planes.size() != 3 && !paired) || planes[0].ndim() != 2) {
        throw nb::value_error("planes are not Y, U, V or Y, UV");
    }
    const size_t height = planes[0].shape(0), width = planes[0].shape(1);
    llamavid_picture picture{};
    picture.format = paired ? LLAMAVID_NV12 : LLAMAVID_YUV420P;
    picture.height = side(height);
    picture.width = side(width);
    picture.matrix = static_cast<llamavid_matrix>(matrix);
    picture.full_range = full_range;
    for (size_t i = 0; i < planes.size(); ++i) {
        const size_t part = i == 0 ? 1 : 2;
        picture.planes[i] = planes[i].data();
        picture.row_stride_bytes[i] = row_stride_of(planes[i], (height + part - 1) / part,
                                                    (width + part - 1) / part, i && paired ? 2 : 1);
    }
    return picture;
}

void define_pixels(nb::module_ &module) {
    module.def("simd_here", &simd_here,
               "The instructions that this processor can use, fastest first, \"scalar\" last.");
    module.def("pixels_from_rgb", &pixels_from_rgb, nb::arg("rgb").noconvert(), nb::arg("mean").noconvert(),
               nb::arg("std").noconvert(), nb::arg("pixels").noconvert(), nb::arg("simd") = simd_here()[0],
               "Prepares pictures for the vision encoder, into `pixels`, by one of `simd_here`.\n\n"
               "rgb uint8 [n, H, W, 3], mean, std float32 [3], pixels float32 or float16 [n, 3, S, S]; "
               "C-contiguous.");
    module.def("pixels_from_yuv420", &pixels_from_yuv420, nb::arg("planes").noconvert(), nb::arg("matrix"),
               nb::arg("full_range"), nb::arg("mean").noconvert(), nb::arg("std").noconvert(),
               nb::arg("pixels").noconvert(), nb::arg("simd") = simd_here()[0],
               "The same for one picture in YUV 4:2:0.\n\n"
               "planes uint8 Y [H, W], U and V [H/2, W/2], or Y and UV [H/2, W/2, 2], halves rounded up, "
               "each row packed; matrix a llamavid_matrix; pixels [1, 3, S, S].");
}
