// Which instructions run: the fastest that the processor has, or what LLAMAVID_SIMD names.

#include <array>
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "llamavid/runtime.h"

namespace llamavid {
namespace {

#ifdef LLAMAVID_X86
// These also ask whether the system saves the wide registers.
bool runs_avx2() { return __builtin_cpu_supports("avx2"); }

bool runs_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}
#endif

// Fastest first; null past the last.
std::array<const Kernels *, 4> found_here() {
    std::array<const Kernels *, 4> found{};
    size_t count = 0;
#ifdef LLAMAVID_X86
    __builtin_cpu_init();
    if (runs_avx512()) found[count++] = &avx512_kernels;
    if (runs_avx2()) found[count++] = &avx2_kernels;
#endif
#ifdef LLAMAVID_ARM
    found[count++] = &neon_kernels;
#endif
    found[count++] = &scalar_kernels;
    return found;
}

const std::array<const Kernels *, 4> &kernels_here() {
    static const auto found = found_here();
    return found;
}

const Kernels *asked_for() {
    const char *name = std::getenv("LLAMAVID_SIMD");
    return name && *name ? kernels_named(name) : kernels_here()[0];
}

}  // namespace

const Kernels *kernels_named(const char *name) {
    for (const Kernels *kernels : kernels_here()) {
        if (kernels && std::strcmp(kernels->name, name) == 0) return kernels;
    }
    return nullptr;
}

const Kernels *chosen_kernels() {  // once: getenv beside another thread's setenv is no safe call
    static const Kernels *const chosen = asked_for();
    return chosen;
}

bool runs_operators() {
#ifdef LLAMAVID_X86
    return chosen_kernels() == &avx512_kernels;
#else
    return false;
#endif
}

}  // namespace llamavid

const char *llamavid_simd(void) {
    const llamavid::Kernels *chosen = llamavid::chosen_kernels();
    return chosen ? chosen->name : nullptr;
}

const char *llamavid_simd_at(size_t index) {
    const auto &here = llamavid::kernels_here();
    return index < here.size() && here[index] ? here[index]->name : nullptr;
}
