#include "packed_memory.h"

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llamavid {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kLargePage = size_t{2} << 20;

}  // namespace

void FreePacked::operator()(uint8_t *bytes) const { std::free(bytes); }

PackedMemory packed_memory(size_t bytes) {
    const size_t whole = bytes < kLargePage ? kCacheLine : kLargePage;
    const size_t size = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
    void *memory = nullptr;
    if (posix_memalign(&memory, whole, size)) throw std::bad_alloc();
#ifdef __linux__
    // Of whole pages alone: the rest of the last would be memory that nobody uses. A refusal costs only time.
    if (whole == kLargePage) madvise(memory, size / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
    return PackedMemory(static_cast<uint8_t *>(memory));
}

}  // namespace llamavid
