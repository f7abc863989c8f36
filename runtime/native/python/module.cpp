// The Python face of llamavid/runtime.h: the same functions over NumPy arrays, nothing copied.
// Callers check their arguments in runtime/pixels.py; here they only have to be safe.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <string>
#include <vector>

#include "llamavid/runtime.h"

namespace nb = nanobind;

namespace {

using Pictures = nb::ndarray<const uint8_t, nb::shape<-1, -1, -1, 3>, nb::c_contig, nb::device::cpu>;
using PerChannel = nb::ndarray<const float, nb::shape<3>, nb::c_contig, nb::device::cpu>;
using Pixels = nb::ndarray<float, nb::shape<-1, 3, -1, -1>, nb::c_contig, nb::device::cpu>;

int32_t side(size_t length) {
    if (length > LLAMAVID_MAX_SIDE) throw nb::value_error(llamavid_status_text(LLAMAVID_BAD_SIZE));
    return static_cast<int32_t>(length);
}

void check(llamavid_status status) {
    if (status == LLAMAVID_OUT_OF_MEMORY) throw std::bad_alloc();  // MemoryError
    if (status != LLAMAVID_OK) throw nb::value_error(llamavid_status_text(status));
}

std::vector<std::string> simd_here() {
    std::vector<std::string> names;
    while (const char *name = llamavid_simd_at(names.size())) names.emplace_back(name);
    return names;
}

// `simd` by name: LLAMAVID_SIMD is read in runtime/pixels.py, at every call.
void pixels_from_rgb(Pictures rgb, PerChannel mean, PerChannel std, Pixels pixels, const std::string &simd) {
    const int32_t height = side(rgb.shape(1)), width = side(rgb.shape(2)), size = side(pixels.shape(2));
    if (pixels.shape(0) != rgb.shape(0) || pixels.shape(3) != pixels.shape(2)) {
        throw nb::value_error("pixels is not [n, 3, S, S] with the n of rgb [n, H, W, 3]");
    }
    const size_t picture_bytes = rgb.shape(1) * rgb.shape(2) * rgb.shape(3);
    const size_t picture_floats = pixels.shape(1) * pixels.shape(2) * pixels.shape(3);
    llamavid_status status = LLAMAVID_OK;
    {
        nb::gil_scoped_release others_may_run;
        for (size_t i = 0; i < rgb.shape(0) && status == LLAMAVID_OK; ++i) {
            status = llamavid_pixels_from_rgb_by(simd.c_str(), rgb.data() + i * picture_bytes, height, width,
                                                 ptrdiff_t{width} * 3, size, mean.data(), std.data(),
                                                 pixels.data() + i * picture_floats);
        }
    }
    check(status);
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "LLaMA-VID's native core; see llamavid/runtime.h.";
    module.def("version", &llamavid_version, "The version of the native core.");
    module.def("simd_here", &simd_here,
               "The instructions that this processor can use, fastest first, \"scalar\" last.");
    module.def("pixels_from_rgb", &pixels_from_rgb, nb::arg("rgb").noconvert(), nb::arg("mean").noconvert(),
               nb::arg("std").noconvert(), nb::arg("pixels").noconvert(), nb::arg("simd") = simd_here()[0],
               "Prepares pictures for the vision encoder, into `pixels`, by one of `simd_here`.\n\n"
               "rgb uint8 [n, H, W, 3], mean, std float32 [3], pixels float32 [n, 3, S, S]; C-contiguous.");
}
