#include "mapped_file.h"

#ifdef __linux__

#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <memory>

namespace llamavid {
namespace {

// By /proc/self/maps: "first-last rwxp offset device inode path", inode 0 where there is no file.
bool is_files(uintptr_t first, uintptr_t last) {
    const std::unique_ptr<FILE, int (*)(FILE *)> maps(std::fopen("/proc/self/maps", "re"), &std::fclose);
    if (!maps) return false;
    char line[512];  // a longer path goes on in the next, which no pattern fits
    while (std::fgets(line, sizeof line, maps.get())) {
        uintptr_t from = 0, to = 0;
        unsigned long inode = 0;
        const char *pattern = "%" SCNxPTR "-%" SCNxPTR " %*s %*x %*x:%*x %lu";
        if (std::sscanf(line, pattern, &from, &to, &inode) != 3) continue;
        if (from <= first && last <= to) return inode != 0;
    }
    return false;
}

}  // namespace

void let_go(const void *bytes, size_t count) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto first = (reinterpret_cast<uintptr_t>(bytes) + page - 1) / page * page;
    const auto last = (reinterpret_cast<uintptr_t>(bytes) + count) / page * page;
    if (first >= last || !is_files(first, last)) return;
    madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED);
}

}  // namespace llamavid

#else

namespace llamavid {

void let_go(const void *, size_t) {}

}  // namespace llamavid

#endif
