// Four products at a time: what tiles of int8 and of int4 weights are summed up with. AVX-512 with VNNI;
// included by files that have made sure of an x86.

#ifndef LLAMAVID_VNNI_H
#define LLAMAVID_VNNI_H

#include <immintrin.h>

#include <cstdint>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 means its own header, bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// By function, not by file, as in kernels_avx2.cpp. The names are those that `runs_avx512` asks for.
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

namespace llamavid {

// A row of a tile: its 64 columns.
struct Sums {
    __m512i a, b, c, d;
};

AVX512 inline Sums load(const void *from) {
    const auto *bytes = static_cast<const int8_t *>(from);
    return {_mm512_loadu_si512(bytes), _mm512_loadu_si512(bytes + 64), _mm512_loadu_si512(bytes + 128),
            _mm512_loadu_si512(bytes + 192)};
}

AVX512 inline void store(const Sums &sums, void *to) {
    auto *bytes = static_cast<int8_t *>(to);
    _mm512_storeu_si512(bytes, sums.a);
    _mm512_storeu_si512(bytes + 64, sums.b);
    _mm512_storeu_si512(bytes + 128, sums.c);
    _mm512_storeu_si512(bytes + 192, sums.d);
}

// The instruction itself: around its intrinsic GCC 12 copies every sum to memory, which halves the speed.
AVX512 inline void add_four(__m512i &sums, __m512i unsigned_bytes, __m512i signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
}

}  // namespace llamavid

#endif
