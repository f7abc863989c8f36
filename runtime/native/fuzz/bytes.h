// What a fuzzer's bytes are read as: numbers, until none are left, then zeros.

#ifndef LLAMAVID_FUZZ_BYTES_H
#define LLAMAVID_FUZZ_BYTES_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// Not assert: it is compiled out of release builds.
#define HOLDS(truth) \
    ((truth) ? (void)0 \
             : (std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #truth), std::abort()))

class Bytes {
  public:
    Bytes(const uint8_t *data, size_t size) : data_(data), left_(size) {}

    bool empty() const { return left_ == 0; }

    template <typename Number>
    Number take() {
        Number number{};
        const size_t count = std::min(left_, sizeof number);
        if (count) std::memcpy(&number, data_, count);
        data_ += count;
        left_ -= count;
        return number;
    }

    // 0 to `count` less 1.
    int below(int count) { return take<uint8_t>() % count; }

    // Mostly small, at times any.
    int32_t side(int32_t small) {
        const uint8_t kind = take<uint8_t>();
        return kind == 255 ? take<int32_t>() : kind % (small + 1);
    }

    // Copies what is left over `to`, again and again.
    void fill(uint8_t *to, size_t size) {
        for (size_t at = 0; at < size; ++at) to[at] = left_ ? data_[at % left_] : static_cast<uint8_t>(at);
    }

  private:
    const uint8_t *data_;
    size_t left_;
};

#endif
