// What an instruction set brings to the resize, and what it is given. The arithmetic is told in Note [PIL's
// resize] of runtime/pixels.py and Note [YUV to RGB] of runtime/yuv.py; every implementation of `Kernels`
// gives the same bytes.
//
// Note [Exact sums]
//     A weight has 24 bits and a sample 8. A sum of int32 products that fits int32 (kHalf) is the same
//     whatever the order, and even where a part of it wraps around. So a weight may be cut into digits
//     that a narrow multiplication takes, w = w1 * 2^k + w0, and the sums of each digit put together at
//     the end. Taps of weight 0 change nothing, so spans are filled up to whole blocks.

#ifndef LLAMAVID_KERNELS_H
#define LLAMAVID_KERNELS_H

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define LLAMAVID_X86 1
#elif defined(__aarch64__) && !defined(__AARCH64EB__)
#define LLAMAVID_ARM 1
#endif

namespace llamavid {

constexpr int32_t kChannels = 3;
constexpr int kFractionBits = 22;
constexpr int32_t kHalf = 1 << (kFractionBits - 1);  // a sum fits: its weights' sizes add up to less than 2
constexpr size_t kRowsAtOnce = 4;
constexpr size_t kReadAhead = 64;   // bytes past a source row's end that `narrow` and `to_rgb` may read
constexpr size_t kWriteAhead = 192;  // bytes past a row of RGB's end that `to_rgb` may write
constexpr size_t kPitchBytes = 64;  // narrow rows are whole multiples of this long

// The source samples that one output sample is made of: `count` of them, from `first`.
struct Span {
    int32_t first;
    int32_t count;
};

// One direction of the resize, for the output samples that the crop keeps.
// Neither end of the spans ever moves back.
struct Axis {
    std::vector<Span> spans;       // [keep]
    std::vector<int32_t> weights;  // [keep, taps], times 2^22, 0 past a span's end; `arrange`d by block
    int32_t taps;                  // the longest span, at least, in whole blocks

    const int32_t *weights_of(size_t output) const { return &weights[output * static_cast<size_t>(taps)]; }
};

// A row of a picture in YUV 4:2:0: two neighbours of `luma` share a sample of `u` and one of `v`.
struct YuvRow {
    const uint8_t *luma, *u, *v;
    bool paired;  // each u is followed by its v
};

// Note [YUV to RGB]: weights times 2^13, the offset of luma times 8.
struct YuvWeights {
    int16_t luma_offset, luma, red_v, green_u, green_v, blue_u;
};
constexpr int16_t kChromaOffset = 128 * 8;

struct Kernels {
    const char *name;
    int32_t block;  // taps that are multiplied together

    // Lays out the weights of a block, in place, as the two below read them.
    void (*arrange)(int32_t *weights);

    // Four source rows [width, 3] to the kept columns [keep, 3]; rows may be the same one.
    // Writes up to one byte past a narrow row's end.
    void (*narrow)(const uint8_t *const rows[kRowsAtOnce], const Axis &columns,
                   uint8_t *const narrowed[kRowsAtOnce]);

    // The weighted sum of `count` rows of `bytes`, a multiple of kPitchBytes. `rows` is filled up to a
    // multiple of kRowsAtOnce with any row; their weights are 0.
    void (*blend)(const uint8_t *const *rows, const int32_t *weights, int32_t count, size_t bytes,
                  uint8_t *blended);

    // `width` pixels of a row in YUV to [width, 3], red first.
    void (*to_rgb)(const YuvRow &row, const YuvWeights &weights, size_t width, uint8_t *rgb);
};

extern const Kernels scalar_kernels;
#ifdef LLAMAVID_X86
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;

// Bytes from a source row to the one that the next `narrow` reads in its place, where rows are evenly
// spaced: only `fetch` may go there.
inline uintptr_t bytes_to_next(const uint8_t *const rows[kRowsAtOnce]) {
    return (reinterpret_cast<uintptr_t>(rows[1]) - reinterpret_cast<uintptr_t>(rows[0])) * kRowsAtOnce;
}

// Asks for memory ahead of its use: unasked, a frame that is in no cache takes a third longer. Reads
// nothing, so the address need not be anyone's.
inline void fetch(const uint8_t *row, uintptr_t distance) {
    __builtin_prefetch(reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(row) + distance));
}
#endif
#ifdef LLAMAVID_ARM
extern const Kernels neon_kernels;
#endif

// What LLAMAVID_SIMD names, or the fastest this processor runs; null where it names another.
const Kernels *chosen_kernels();
// Null for a name that this processor does not run.
const Kernels *kernels_named(const char *name);

// Whether int8_product.h, attention.h and layer_norm.h run here: AVX-512 with VNNI, and no other chosen.
bool runs_operators();

}  // namespace llamavid

#endif
