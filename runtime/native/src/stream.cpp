// A bounded queue of prepared frames between two threads: see llamavid/runtime.h for the rules.
//
// Equal to runtime/picture_queue.py in every status, counter and pixel.

#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <utility>

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSlackSeconds = 1e-6;  // times come from ticks: a frame at 1 s may be at 0.9999999
constexpr std::chrono::milliseconds kLookUp{100};

// Who holds it is the one thread in a call.
class Turn {
  public:
    explicit Turn(std::atomic_flag &taken)
        : taken_(taken), mine_(!taken.test_and_set(std::memory_order_acquire)) {}
    ~Turn() {
        if (mine_) taken_.clear(std::memory_order_release);
    }
    Turn(const Turn &) = delete;
    Turn &operator=(const Turn &) = delete;
    explicit operator bool() const { return mine_; }

  private:
    std::atomic_flag &taken_;
    const bool mine_;
};

// Whether `ready` came true in time. A negative timeout is none.
template <typename Ready>
bool wait(std::unique_lock<std::mutex> &lock, std::condition_variable &changed, int32_t timeout_ms,
          const StillWaiting &still_waiting, const Ready &ready) {
    const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
    while (!ready()) {
        const auto now = Clock::now();
        if (timeout_ms >= 0 && now >= deadline) return false;
        if (timeout_ms < 0 && !still_waiting) {
            changed.wait(lock);
            continue;
        }
        auto until = timeout_ms < 0 ? now + kLookUp : deadline;
        if (still_waiting) until = std::min(until, now + kLookUp);
        if (changed.wait_until(lock, until) == std::cv_status::timeout && still_waiting) {
            lock.unlock();
            const bool go_on = still_waiting();
            lock.lock();
            if (!go_on) return ready();
        }
    }
    return true;
}

// Of one slot; 0 where no memory could hold the stream.
size_t bytes_of_slot(const llamavid_stream_options &options) {
    const uint64_t side = static_cast<uint64_t>(options.image_size);
    const uint64_t bytes = 3 * side * side * (options.dtype == LLAMAVID_FLOAT32 ? 4 : 2);
    const uint64_t most = static_cast<uint64_t>(std::numeric_limits<ptrdiff_t>::max());
    return bytes > most / (static_cast<uint64_t>(options.capacity) + 2) ? 0 : static_cast<size_t>(bytes);
}

}  // namespace

llamavid_status llamavid_stream::why_refused(const llamavid_stream_options &options) {
    if (options.image_size < 1 || options.image_size > LLAMAVID_MAX_SIDE) return LLAMAVID_BAD_SIZE;
    for (const float std : options.std) {
        if (!(std > 0.0f)) return LLAMAVID_BAD_STD;
    }
    if (options.dtype != LLAMAVID_FLOAT32 && options.dtype != LLAMAVID_FLOAT16) return LLAMAVID_BAD_FORMAT;
    if (options.capacity < 1 || !(options.fps >= 0 && std::isfinite(options.fps))) return LLAMAVID_BAD_OPTION;
    if (options.when_full != LLAMAVID_BLOCK && options.when_full != LLAMAVID_DROP_OLDEST) {
        return LLAMAVID_BAD_OPTION;
    }
    return bytes_of_slot(options) ? LLAMAVID_OK : LLAMAVID_OUT_OF_MEMORY;
}

llamavid_stream::llamavid_stream(const llamavid_stream_options &options, std::string simd)
    : options_(options),
      simd_(std::move(simd)),
      slot_bytes_(bytes_of_slot(options)),
      memory_(slot_bytes_ * (static_cast<size_t>(options.capacity) + 2)),
      producers_(static_cast<size_t>(options.capacity) + 1),
      queue_(static_cast<size_t>(options.capacity)) {
    free_.reserve(producers_);
    for (size_t number = 0; number < producers_; ++number) free_.push_back(number);
}

llamavid_status llamavid_stream::push(const llamavid_picture *picture, int64_t index, double pts_seconds,
                                      int32_t timeout_ms, const StillWaiting &still_waiting) {
    const Turn turn(pushing_);
    Lock lock(mutex_);
    if (!turn) return refused(LLAMAVID_BUSY);
    if (ended_ || closed_) return refused(LLAMAVID_CLOSED);
    if (!picture) return refused(LLAMAVID_NULL_POINTER);
    const bool follows = !started_ || pts_seconds >= last_seconds_;
    if (!std::isfinite(pts_seconds) || !follows) return refused(LLAMAVID_BAD_TIME);
    if (!is_due(pts_seconds)) {
        ++counters_.pushed, ++counters_.sampled_out;
        last_seconds_ = pts_seconds;
        return LLAMAVID_SKIPPED;
    }
    lock.unlock();
    const llamavid_status status = prepare(*picture);
    lock.lock();
    if (status != LLAMAVID_OK) return refused(status);
    const auto may_go_on = [this] {
        const bool room = options_.when_full == LLAMAVID_DROP_OLDEST || counters_.waiting < queue_.size();
        return room || ended_ || closed_;
    };
    if (!wait(lock, room_, timeout_ms, still_waiting, may_go_on)) {
        ++counters_.pushed, ++counters_.timed_out;
        return LLAMAVID_TIMED_OUT;
    }
    if (ended_ || closed_) return refused(LLAMAVID_CLOSED);
    hand_over({index, pts_seconds});
    return LLAMAVID_OK;
}

llamavid_status llamavid_stream::next(void *pixels, llamavid_frame_info *info, int32_t timeout_ms,
                                      const StillWaiting &still_waiting) {
    if (!pixels) return LLAMAVID_NULL_POINTER;
    const Turn turn(taking_);
    if (!turn) return LLAMAVID_BUSY;
    Lock lock(mutex_);
    const bool in_time = wait(lock, frames_, timeout_ms, still_waiting,
                              [this] { return counters_.waiting > 0 || ended_ || closed_; });
    if (closed_) return LLAMAVID_CLOSED;
    if (!in_time) return LLAMAVID_TIMED_OUT;
    if (counters_.waiting == 0) return LLAMAVID_ENDED;
    const Waiting oldest = take_oldest();
    ++counters_.delivered;
    room_.notify_one();
    lock.unlock();
    std::memcpy(pixels, slot(oldest.slot), slot_bytes_);
    if (info) *info = oldest.info;
    lock.lock();
    free_.push_back(oldest.slot);
    return LLAMAVID_OK;
}

void llamavid_stream::end() {
    const Lock lock(mutex_);
    ended_ = true;
    room_.notify_all();
    frames_.notify_all();
}

void llamavid_stream::close() {
    const Lock lock(mutex_);
    closed_ = true;
    room_.notify_all();
    frames_.notify_all();
}

llamavid_stream_counters llamavid_stream::counters() {
    const Lock lock(mutex_);
    return counters_;
}

// The rest, but `prepare`, is called within the lock.

llamavid_status llamavid_stream::refused(llamavid_status status) {
    ++counters_.pushed, ++counters_.refused;
    return status;
}

bool llamavid_stream::is_due(double pts_seconds) const {
    if (!started_ || options_.fps == 0) return true;
    return (pts_seconds - first_seconds_ + kSlackSeconds) * options_.fps >= next_due_;
}

// Into the producer's slot, outside the lock.
llamavid_status llamavid_stream::prepare(const llamavid_picture &picture) {
    const auto &o = options_;
    void *pixels = slot(producers_);
    const char *simd = simd_.empty() ? llamavid_simd() : simd_.c_str();
    if (!simd) return LLAMAVID_BAD_SIMD;
    return llamavid_pixels_from_picture_by(simd, &picture, o.image_size, o.mean, o.std, o.dtype, pixels);
}

// The producer's slot goes into the queue, whose oldest frame makes room if it must.
void llamavid_stream::hand_over(llamavid_frame_info info) {
    if (!started_) first_seconds_ = info.pts_seconds;
    started_ = true;
    last_seconds_ = info.pts_seconds;
    next_due_ = std::floor((info.pts_seconds - first_seconds_ + kSlackSeconds) * options_.fps) + 1;
    if (counters_.waiting == queue_.size()) {
        free_.push_back(take_oldest().slot);
        ++counters_.dropped;
    }
    queue_[(oldest_ + counters_.waiting) % queue_.size()] = {producers_, info};
    producers_ = free_.back();
    free_.pop_back();
    ++counters_.pushed, ++counters_.kept, ++counters_.waiting;
    frames_.notify_one();
}

llamavid_stream::Waiting llamavid_stream::take_oldest() {
    const Waiting oldest = queue_[oldest_];
    oldest_ = (oldest_ + 1) % queue_.size();
    --counters_.waiting;
    return oldest;
}

// The C door.

llamavid_status llamavid_stream_open(const llamavid_stream_options *options, llamavid_stream **stream) {
    if (!stream) return LLAMAVID_NULL_POINTER;
    *stream = nullptr;
    if (!options) return LLAMAVID_NULL_POINTER;
    if (const llamavid_status status = llamavid_stream::why_refused(*options)) return status;
    try {
        *stream = std::make_unique<llamavid_stream>(*options).release();
    } catch (const std::exception &) {  // an allocation, or a mutex that the system does not give
        return LLAMAVID_OUT_OF_MEMORY;
    }
    return LLAMAVID_OK;
}

llamavid_status llamavid_stream_push(llamavid_stream *stream, const llamavid_picture *picture, int64_t index,
                                     double pts_seconds, int32_t timeout_ms) {
    return stream ? stream->push(picture, index, pts_seconds, timeout_ms) : LLAMAVID_NULL_POINTER;
}

llamavid_status llamavid_stream_next(llamavid_stream *stream, void *pixels, llamavid_frame_info *info,
                                     int32_t timeout_ms) {
    return stream ? stream->next(pixels, info, timeout_ms) : LLAMAVID_NULL_POINTER;
}

void llamavid_stream_end(llamavid_stream *stream) {
    if (stream) stream->end();
}

void llamavid_stream_close(llamavid_stream *stream) {
    if (stream) stream->close();
}

llamavid_stream_counters llamavid_stream_counters_of(llamavid_stream *stream) {
    return stream ? stream->counters() : llamavid_stream_counters{};
}

void llamavid_stream_free(llamavid_stream *stream) { delete stream; }
