// What the parts of the Python face share.

#ifndef LLAMAVID_MODULE_H
#define LLAMAVID_MODULE_H

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <vector>

#include "llamavid/runtime.h"

// Raises what a status means, unless it is LLAMAVID_OK.
void check(llamavid_status status);

using Plane = nanobind::ndarray<const uint8_t, nanobind::device::cpu>;

// Raises for an array of another dtype.
template <typename Array>
llamavid_dtype dtype_of(const Array &array) {
    if (array.dtype() == nanobind::dtype<float>()) return LLAMAVID_FLOAT32;
    const nanobind::dlpack::dtype half{static_cast<uint8_t>(nanobind::dlpack::dtype_code::Float), 16, 1};
    if (array.dtype() == half) return LLAMAVID_FLOAT16;
    throw nanobind::type_error("an array is neither float32 nor float16");
}

// As llamavid_picture counts it; raises for one that is too long.
int32_t side(size_t length);

// Y, U, V or Y, UV; raises for planes of other shapes.
llamavid_picture yuv420_picture(const std::vector<Plane> &planes, int matrix, bool full_range);

void define_pixels(nanobind::module_ &module);
void define_sequence(nanobind::module_ &module);
void define_stream(nanobind::module_ &module);

#endif
