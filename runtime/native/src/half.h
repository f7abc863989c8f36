// float16 as NumPy's astype makes it: round to nearest, ties to even.

#ifndef LLAMAVID_HALF_H
#define LLAMAVID_HALF_H

#include <cstdint>
#include <cstring>

namespace llamavid {

struct Half {
    uint16_t bits;
};

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline Half half_of(float value) {
    const uint32_t bits = bits_of(value), size = bits & 0x7fffffffu;
    uint32_t half;
    if (size > 0x7f800000u) {  // not a number
        half = 0x7e00u;
    } else if (size >= 0x477ff000u) {  // 65520, half-way past the largest, and up: infinity
        half = 0x7c00u;
    } else if (size < 0x38800000u) {  // under 2^-14: whole multiples of 2^-24, which is what 0.5 ends in
        float rounded;
        std::memcpy(&rounded, &size, sizeof rounded);
        half = bits_of(rounded + 0.5f) - bits_of(0.5f);
    } else {  // 13 bits of fraction less, and an exponent that counts from 15 instead of 127
        const uint32_t is_odd = size >> 13 & 1;
        half = (size - ((127u - 15u) << 23) + 0xfffu + is_odd) >> 13;
    }
    return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | half)};
}

// Exact. Under 2^-14 the fraction counts 2^-24: set after the 1 of 2^-14, it is left when that goes. Without a
// branch, so that a loop over many becomes wide instructions.
inline float float_of(Half half) {
    const uint32_t size = half.bits & 0x7fffu;
    const uint32_t is_small = 0u - (size < 0x0400u), is_endless = 0u - (size >= 0x7c00u);
    const uint32_t exponents = (127u - 15u) << 23;  // what the two count from, apart
    const uint32_t bits = (size << 13) + exponents + (is_endless & exponents) + (is_small & 1u << 23);
    const uint32_t taken_bits = is_small & 113u << 23;  // 2^-14, or 0
    float value, taken;
    std::memcpy(&value, &bits, sizeof value);
    std::memcpy(&taken, &taken_bits, sizeof taken);
    const uint32_t exact = bits_of(value - taken) | (half.bits & 0x8000u) << 16;
    std::memcpy(&value, &exact, sizeof value);
    return value;
}

}  // namespace llamavid

#endif
