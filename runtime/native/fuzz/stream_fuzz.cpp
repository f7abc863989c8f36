// Any calls in any order on one stream: statuses, frames and counters are those of a plain model of it.
// Two threads at once are the stress test's (tests/stream_threads_test.c).

#include <cmath>
#include <deque>
#include <vector>

#include "bytes.h"
#include "llamavid/runtime.h"

namespace {

constexpr int32_t kSide = 5;

struct Model {
    std::deque<llamavid_frame_info> waiting;
    llamavid_stream_counters counters{};
    bool started = false, ended = false, closed = false;
    double last = 0;
};

void compare(const llamavid_stream_counters &c, const Model &model) {
    const llamavid_stream_counters &m = model.counters;
    HOLDS(c.pushed == m.pushed && c.kept == m.kept && c.sampled_out == m.sampled_out);
    HOLDS(c.refused == m.refused && c.timed_out == m.timed_out);
    HOLDS(c.dropped == m.dropped && c.delivered == m.delivered && c.waiting == model.waiting.size());
    HOLDS(c.pushed == c.kept + c.sampled_out + c.refused + c.timed_out);
    HOLDS(c.kept == c.delivered + c.dropped + c.waiting);
}

double time_of(Bytes &input, double last) {
    const int kind = input.below(16);
    if (kind == 0) return input.take<double>();
    if (kind == 1) return last - 0.25;
    return last + input.below(64) / 16.0;
}

// The picture's samples are all `index`, so that a frame's pixels tell which one it is.
llamavid_picture picture_of(std::vector<uint8_t> &rgb, int64_t index, int form) {
    rgb.assign(size_t{kSide} * kSide * 3, static_cast<uint8_t>(index));
    llamavid_picture picture{};
    picture.format = LLAMAVID_RGB24;
    picture.height = form == 1 ? 0 : kSide;
    picture.width = kSide;
    picture.planes[0] = form == 2 ? nullptr : rgb.data();
    picture.row_stride_bytes[0] = form == 3 ? kSide : kSide * 3;
    return picture;
}

void push(llamavid_stream *stream, const llamavid_stream_options &options, Model &model, Bytes &input,
          int64_t index) {
    std::vector<uint8_t> rgb;
    const int form = input.below(16);
    const double pts_seconds = time_of(input, model.last);
    const llamavid_picture picture = picture_of(rgb, index, form);
    const llamavid_status status =
        llamavid_stream_push(stream, form == 4 ? nullptr : &picture, index, pts_seconds, 0);
    const bool full = model.waiting.size() == static_cast<size_t>(options.capacity);
    const bool is_bad = form >= 1 && form <= 3;
    ++model.counters.pushed;
    switch (status) {
        case LLAMAVID_OK:
            HOLDS(!model.ended && !model.closed && !is_bad && form != 4 && std::isfinite(pts_seconds));
            HOLDS(!model.started || pts_seconds >= model.last);
            if (full) {
                HOLDS(options.when_full == LLAMAVID_DROP_OLDEST);
                model.waiting.pop_front();
                ++model.counters.dropped;
            }
            model.waiting.push_back({index, pts_seconds});
            ++model.counters.kept;
            model.started = true;
            model.last = pts_seconds;
            break;
        case LLAMAVID_SKIPPED:
            HOLDS(model.started && options.fps > 0 && pts_seconds >= model.last && form != 4);
            ++model.counters.sampled_out;
            model.last = pts_seconds;
            break;
        case LLAMAVID_TIMED_OUT:
            HOLDS(full && options.when_full == LLAMAVID_BLOCK && !is_bad);
            ++model.counters.timed_out;
            break;
        default:
            HOLDS((status == LLAMAVID_CLOSED) == (model.ended || model.closed));
            if (status == LLAMAVID_BAD_TIME) {
                HOLDS(!std::isfinite(pts_seconds) || (model.started && pts_seconds < model.last));
            }
            if (status == LLAMAVID_BAD_SIZE) HOLDS(form == 1);
            if (status == LLAMAVID_NULL_POINTER) HOLDS(form == 2 || form == 4);
            if (status == LLAMAVID_BAD_STRIDE) HOLDS(form == 3);
            HOLDS(status != LLAMAVID_BUSY && status != LLAMAVID_ENDED);
            ++model.counters.refused;
    }
}

void next(llamavid_stream *stream, const llamavid_stream_options &options, Model &model) {
    const size_t side = static_cast<size_t>(options.image_size);
    std::vector<float> pixels(3 * side * side);
    llamavid_frame_info info{};
    const llamavid_status status = llamavid_stream_next(stream, pixels.data(), &info, 0);
    if (model.closed) {
        HOLDS(status == LLAMAVID_CLOSED);
    } else if (model.waiting.empty()) {
        HOLDS(status == (model.ended ? LLAMAVID_ENDED : LLAMAVID_TIMED_OUT));
    } else {
        HOLDS(status == LLAMAVID_OK);
        HOLDS(info.index == model.waiting.front().index);
        HOLDS(info.pts_seconds == model.waiting.front().pts_seconds);
        if (options.dtype == LLAMAVID_FLOAT32) {
            for (const float value : pixels) HOLDS(std::lround(value * 255) == (info.index & 255));
        }
        model.waiting.pop_front();
        ++model.counters.delivered;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Bytes input(data, size);
    llamavid_stream_options options{};
    options.image_size = input.side(6);
    for (int i = 0; i < 3; ++i) options.std[i] = input.below(16) ? 1.0f : input.take<float>();
    options.dtype = static_cast<llamavid_dtype>(input.below(8) == 7 ? 2 : input.below(2));
    options.capacity = input.side(5);
    options.fps = input.below(4) ? input.below(5) : input.take<double>();
    options.when_full = static_cast<llamavid_when_full>(input.below(8) == 7 ? 2 : input.below(2));
    const bool is_small = options.image_size <= 64 && options.capacity <= 64;
    for (const float std : options.std) {
        if (!is_small || (std > 0 && std != 1.0f)) return 0;  // pixels would not tell the frame
    }

    llamavid_stream *stream = nullptr;
    const llamavid_status opened = llamavid_stream_open(&options, &stream);
    HOLDS((opened == LLAMAVID_OK) == (stream != nullptr));
    if (!stream) return 0;
    Model model;
    for (int64_t index = 0; !input.empty() && index < 1000; ++index) {
        const int call = input.below(32);
        if (call < 18) push(stream, options, model, input, index);
        else if (call < 30) next(stream, options, model);
        else if (call == 30) llamavid_stream_end(stream), model.ended = true;
        else llamavid_stream_close(stream), model.closed = true;
        compare(llamavid_stream_counters_of(stream), model);
    }
    llamavid_stream_free(stream);
    return 0;
}
