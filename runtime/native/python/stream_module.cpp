// The Python face of llamavid_stream. What it is given is checked in runtime/stream.py.

#include "stream.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "module.h"

namespace nb = nanobind;

namespace {

using Picture = nb::ndarray<const uint8_t, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using PerChannel = nb::ndarray<const float, nb::shape<3>, nb::c_contig, nb::device::cpu>;
using Pixels = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;

bool on_main_thread() {
    const nb::module_ threading = nb::module_::import_("threading");
    return threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident"));
}

// Runs `wait` without the interpreter's lock. On the main thread it looks up for Ctrl-C; other threads have
// no signals to handle, and may still be waiting when the interpreter is gone.
template <typename Wait>
llamavid_status interruptible(const Wait &wait) {
    bool interrupted = false;
    StillWaiting look_up;
    if (on_main_thread()) {
        look_up = [&interrupted] {
            const nb::gil_scoped_acquire handlers_run_here;
            interrupted = PyErr_CheckSignals() != 0;
            return !interrupted;
        };
    }
    llamavid_status status;
    {
        const nb::gil_scoped_release others_may_run;
        status = wait(look_up);
    }
    if (interrupted) throw nb::python_error();
    return status;
}

void open(llamavid_stream *self, int32_t image_size, const PerChannel &mean, const PerChannel &std, bool half,
          int32_t capacity, double fps, bool drop_oldest, const std::string &simd) {
    llamavid_stream_options options{};
    options.image_size = image_size;
    for (size_t channel = 0; channel < 3; ++channel) {
        options.mean[channel] = mean(channel);
        options.std[channel] = std(channel);
    }
    options.dtype = half ? LLAMAVID_FLOAT16 : LLAMAVID_FLOAT32;
    options.capacity = capacity;
    options.fps = fps;
    options.when_full = drop_oldest ? LLAMAVID_DROP_OLDEST : LLAMAVID_BLOCK;
    check(llamavid_stream::why_refused(options));
    new (self) llamavid_stream(options, simd);
}

int push_picture(llamavid_stream &self, const llamavid_picture *picture, int64_t index, double pts_seconds,
                 int32_t timeout_ms) {
    return interruptible([&](const StillWaiting &look_up) {
        return self.push(picture, index, pts_seconds, timeout_ms, look_up);
    });
}

int push(llamavid_stream &self, const std::optional<Picture> &rgb, int64_t index, double pts_seconds,
         int32_t timeout_ms) {
    llamavid_picture picture{};
    if (!rgb) return push_picture(self, nullptr, index, pts_seconds, timeout_ms);
    picture.format = LLAMAVID_RGB24;
    picture.height = side(rgb->shape(0));
    picture.width = side(rgb->shape(1));
    picture.planes[0] = rgb->data();
    picture.row_stride_bytes[0] = ptrdiff_t{picture.width} * 3;
    return push_picture(self, &picture, index, pts_seconds, timeout_ms);
}

int push_yuv420(llamavid_stream &self, const std::vector<Plane> &planes, int matrix, bool full_range,
                int64_t index, double pts_seconds, int32_t timeout_ms) {
    const llamavid_picture picture = yuv420_picture(planes, matrix, full_range);
    return push_picture(self, &picture, index, pts_seconds, timeout_ms);
}

std::tuple<int, int64_t, double> next(llamavid_stream &self, const Pixels &pixels, int32_t timeout_ms) {
    if (pixels.nbytes() != self.slot_bytes()) {
        throw nb::value_error("pixels is not [3, S, S] of the stream's dtype");
    }
    llamavid_frame_info info{};
    const int status = interruptible([&](const StillWaiting &look_up) {
        return self.next(pixels.data(), &info, timeout_ms, look_up);
    });
    return {status, info.index, info.pts_seconds};
}

std::tuple<uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t> counters(
    llamavid_stream &self) {
    const llamavid_stream_counters c = self.counters();
    return {c.pushed, c.kept, c.sampled_out, c.refused, c.timed_out, c.dropped, c.delivered, c.waiting};
}

}  // namespace

void define_stream(nb::module_ &module) {
    nb::class_<llamavid_stream>(module, "PictureQueue", "As PictureQueue of runtime/picture_queue.py.")
        .def("__init__", &open, nb::arg("image_size"), nb::arg("mean").noconvert(),
             nb::arg("std").noconvert(), nb::arg("half"), nb::arg("capacity"), nb::arg("fps"),
             nb::arg("drop_oldest"), nb::arg("simd"))
        .def("push", &push, nb::arg("rgb").noconvert().none(), nb::arg("index"), nb::arg("pts_seconds"),
             nb::arg("timeout_ms"))
        .def("push_yuv420", &push_yuv420, nb::arg("planes").noconvert(), nb::arg("matrix"),
             nb::arg("full_range"), nb::arg("index"), nb::arg("pts_seconds"), nb::arg("timeout_ms"))
        .def("next", &next, nb::arg("pixels").noconvert(), nb::arg("timeout_ms"))
        .def("end", &llamavid_stream::end)
        .def("close", &llamavid_stream::close)
        .def("counters", &counters);
}
