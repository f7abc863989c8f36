// llamavid_sequence: text embeddings and frame tokens into the language model's input.
//
// Equal to runtime/assembly.py.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "half.h"
#include "llamavid/runtime.h"

namespace {

using namespace llamavid;

using Parts = llamavid_sequence_parts;

constexpr size_t kMost = std::numeric_limits<size_t>::max();

bool is_dtype(llamavid_dtype dtype) { return dtype == LLAMAVID_FLOAT32 || dtype == LLAMAVID_FLOAT16; }

size_t bytes_of(llamavid_dtype dtype) { return dtype == LLAMAVID_FLOAT32 ? 4 : 2; }

int64_t id_at(const Parts &parts, size_t index) {
    if (parts.id_bytes == 8) return static_cast<const int64_t *>(parts.ids)[index];
    return static_cast<const int32_t *>(parts.ids)[index];
}

size_t rows_a_frame(const Parts &parts) { return parts.content_tokens + 1; }

// The rows of slot number `slot`.
llamavid_rows rows_of(const Parts &parts, size_t slot, bool one_each) {
    if (parts.slots) return parts.slots[slot];
    if (one_each) return {slot, 1};
    return {0, parts.frames * rows_a_frame(parts)};
}

// What `length` and whether the slots take one row each come to, or why not.
llamavid_status measured(const Parts &parts, size_t &length, bool &one_each) {
    if (parts.id_bytes != 4 && parts.id_bytes != 8) return LLAMAVID_BAD_FORMAT;
    if (!is_dtype(parts.table_dtype) || !is_dtype(parts.context_dtype) || !is_dtype(parts.content_dtype)) {
        return LLAMAVID_BAD_FORMAT;
    }
    if (parts.width < 1) return LLAMAVID_BAD_SIZE;
    if (parts.content_tokens == kMost || parts.frames > kMost / rows_a_frame(parts)) return LLAMAVID_BAD_SIZE;
    if (!parts.ids && parts.id_count) return LLAMAVID_NULL_POINTER;
    if (parts.frames && !parts.context) return LLAMAVID_NULL_POINTER;
    if (parts.frames && parts.content_tokens && !parts.content) return LLAMAVID_NULL_POINTER;

    size_t slots = 0;
    for (size_t i = 0; i < parts.id_count; ++i) {
        const int64_t id = id_at(parts, i);
        if (id == LLAMAVID_SLOT) {
            ++slots;
        } else if (id < 0 || static_cast<uint64_t>(id) >= parts.vocabulary) {
            return LLAMAVID_BAD_ID;
        }
    }
    if (!parts.table && slots < parts.id_count) return LLAMAVID_NULL_POINTER;

    const size_t rows = parts.frames * rows_a_frame(parts);
    if (parts.slots ? slots != parts.slot_count : slots != 1 && slots != rows) return LLAMAVID_BAD_SLOT;
    one_each = slots != 1;
    length = parts.id_count - slots;
    for (size_t slot = 0; slot < slots; ++slot) {
        const llamavid_rows taken = rows_of(parts, slot, one_each);
        if (taken.first > rows || taken.count > rows - taken.first) return LLAMAVID_BAD_SLOT;
        if (taken.count > kMost - length) return LLAMAVID_BAD_SIZE;
        length += taken.count;
    }
    return LLAMAVID_OK;
}

void widen(const Half *halves, size_t count, float *floats) {
    for (size_t i = 0; i < count; ++i) floats[i] = float_of(halves[i]);
}

void narrow(const float *floats, size_t count, Half *halves) {
    for (size_t i = 0; i < count; ++i) halves[i] = half_of(floats[i]);
}

// Writes one row after the other.
class Sequence {
  public:
    Sequence(void *sequence, llamavid_dtype dtype, size_t width)
        : next_(static_cast<uint8_t *>(sequence)), dtype_(dtype), width_(width) {}

    // `count` rows of the array `rows`, from row `first`.
    void append(const void *rows, llamavid_dtype dtype, size_t first, size_t count) {
        const uint8_t *from = static_cast<const uint8_t *>(rows) + first * width_ * bytes_of(dtype);
        const size_t values = count * width_;
        if (dtype == dtype_) {
            std::memcpy(next_, from, values * bytes_of(dtype));
        } else if (dtype == LLAMAVID_FLOAT16) {
            widen(reinterpret_cast<const Half *>(from), values, reinterpret_cast<float *>(next_));
        } else {
            narrow(reinterpret_cast<const float *>(from), values, reinterpret_cast<Half *>(next_));
        }
        next_ += values * bytes_of(dtype_);
    }

  private:
    uint8_t *next_;
    const llamavid_dtype dtype_;
    const size_t width_;
};

void append_rows(const Parts &parts, llamavid_rows rows, Sequence &sequence) {
    const size_t per_frame = rows_a_frame(parts), end = rows.first + rows.count;
    for (size_t row = rows.first; row < end;) {
        const size_t frame = row / per_frame, token = row % per_frame;
        if (token == 0) {
            sequence.append(parts.context, parts.context_dtype, frame, 1);
            ++row;
        } else {
            const size_t count = std::min(per_frame - token, end - row);
            const size_t first = frame * parts.content_tokens + token - 1;
            sequence.append(parts.content, parts.content_dtype, first, count);
            row += count;
        }
    }
}

}  // namespace

llamavid_status llamavid_sequence_length(const llamavid_sequence_parts *parts, size_t *length) {
    if (!parts || !length) return LLAMAVID_NULL_POINTER;
    size_t rows = 0;
    bool one_each;
    const llamavid_status status = measured(*parts, rows, one_each);
    if (status == LLAMAVID_OK) *length = rows;
    return status;
}

llamavid_status llamavid_sequence(const llamavid_sequence_parts *parts, llamavid_dtype dtype, void *sequence,
                                  size_t length) {
    if (!parts || !sequence) return LLAMAVID_NULL_POINTER;
    if (!is_dtype(dtype)) return LLAMAVID_BAD_FORMAT;
    size_t rows = 0;
    bool one_each = false;
    if (const llamavid_status status = measured(*parts, rows, one_each)) return status;
    if (rows != length) return LLAMAVID_BAD_LENGTH;

    Sequence written(sequence, dtype, parts->width);
    size_t slot = 0;
    for (size_t i = 0; i < parts->id_count; ++i) {
        const int64_t id = id_at(*parts, i);
        if (id == LLAMAVID_SLOT) {
            append_rows(*parts, rows_of(*parts, slot++, one_each), written);
        } else {
            written.append(parts->table, parts->table_dtype, static_cast<size_t>(id), 1);
        }
    }
    return LLAMAVID_OK;
}
