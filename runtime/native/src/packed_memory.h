// Memory for a weight as a product wants it: read from one end to the other, again and again.

#ifndef LLAMAVID_PACKED_MEMORY_H
#define LLAMAVID_PACKED_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <memory>

namespace llamavid {

struct FreePacked {
    void operator()(uint8_t *bytes) const;
};
using PackedMemory = std::unique_ptr<uint8_t[], FreePacked>;

// Not set to anything, from the start of a cache line; in large pages where the system has them to give, which
// the processor fetches ahead over their whole length: a row times four-bit levels takes three quarters of the
// time. Throws `std::bad_alloc`.
PackedMemory packed_memory(size_t bytes);

}  // namespace llamavid

#endif
