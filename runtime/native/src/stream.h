// The stream of llamavid/runtime.h as C++ sees it: the Python face needs to look up from a wait.

#ifndef LLAMAVID_STREAM_H
#define LLAMAVID_STREAM_H

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "llamavid/runtime.h"

// Asked ten times a second in a wait, outside the lock; false ends the wait as its timeout would.
using StillWaiting = std::function<bool()>;

// Note [Slots]
//     A slot is free, in the queue, the producer's or the consumer's. The producer always holds one and
//     prepares its picture there; the consumer holds one while it copies. Both work outside the lock: a
//     slot changes hands within it. With two more slots than the queue has places, one is free whenever
//     the producer hands over its own.
struct llamavid_stream {
  public:
    // Options that `why_refused` passes. `simd` as in llamavid_pixels_from_picture_by; empty: the default.
    explicit llamavid_stream(const llamavid_stream_options &options, std::string simd = "");

    static llamavid_status why_refused(const llamavid_stream_options &options);

    llamavid_status push(const llamavid_picture *picture, int64_t index, double pts_seconds,
                         int32_t timeout_ms, const StillWaiting &still_waiting = {});
    llamavid_status next(void *pixels, llamavid_frame_info *info, int32_t timeout_ms,
                         const StillWaiting &still_waiting = {});
    void end();
    void close();
    llamavid_stream_counters counters();

    size_t slot_bytes() const { return slot_bytes_; }

  private:
    using Lock = std::unique_lock<std::mutex>;
    struct Waiting {
        size_t slot;
        llamavid_frame_info info;
    };

    llamavid_status refused(llamavid_status status);
    bool is_due(double pts_seconds) const;
    llamavid_status prepare(const llamavid_picture &picture);
    void hand_over(llamavid_frame_info info);
    Waiting take_oldest();
    uint8_t *slot(size_t number) { return &memory_[number * slot_bytes_]; }

    const llamavid_stream_options options_;
    const std::string simd_;
    const size_t slot_bytes_;
    std::vector<uint8_t> memory_;
    size_t producers_;  // the producer's slot: only its thread reads and writes this

    std::mutex mutex_;  // of all below but the last line
    std::condition_variable room_, frames_;
    std::vector<size_t> free_;
    std::vector<Waiting> queue_;  // [capacity], a ring: `counters_.waiting` of them, from `oldest_`
    size_t oldest_ = 0;
    llamavid_stream_counters counters_{};
    bool started_ = false, ended_ = false, closed_ = false;
    double first_seconds_ = 0, last_seconds_ = 0;
    double next_due_ = 0;  // in 1/fps since the first frame

    std::atomic_flag pushing_ = ATOMIC_FLAG_INIT, taking_ = ATOMIC_FLAG_INIT;
};

#endif
