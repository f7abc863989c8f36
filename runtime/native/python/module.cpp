// The Python face of llamavid/runtime.h: the same functions over NumPy arrays, nothing copied.
// Callers check their arguments in Python; here they only have to be safe.

#include "module.h"

#include <new>

#include "kernels.h"

namespace nb = nanobind;

void check(llamavid_status status) {
    if (status == LLAMAVID_OUT_OF_MEMORY) throw std::bad_alloc();  // MemoryError
    if (status != LLAMAVID_OK) throw nb::value_error(llamavid_status_text(status));
}

NB_MODULE(_native, module) {
    module.doc() = "LLaMA-VID's native core; see llamavid/runtime.h.";
    module.def("version", &llamavid_version, "The version of the native core.");
    module.def("runs_operators", &llamavid::runs_operators,
               "Whether the operators of onnxruntime_operators.cpp run on this processor.");
    define_pixels(module);
    define_sequence(module);
    define_stream(module);
}
