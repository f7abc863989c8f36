// Six rows times a panel of 64 columns: the part of an int8 product that is the processor's.

#ifndef LLAMAVID_INT8_TILE_H
#define LLAMAVID_INT8_TILE_H

#include <cstddef>
#include <cstdint>

namespace llamavid {

constexpr size_t kTileRows = 6;
constexpr size_t kPanel = 64;
constexpr size_t kTogether = 4;  // products that one instruction adds up
constexpr int32_t kZeroLevel = 128;
constexpr size_t kCacheLine = 64;

struct Int8Tile {
    const uint8_t *levels;  // [rows, k]
    size_t rows;            // 1 to kTileRows
    size_t k, n;            // n: from a row of what is written to the next
    const int8_t *panel;    // [k / 4, 64, 4], in whole cache lines
    size_t columns;         // of it that are written
    const int8_t *soon, *soon_end;  // what is asked for meanwhile, in whole cache lines
    const int32_t *starts;  // [64], as the next two
    const float *factors, *bias;
    bool gelu;
    float *floats;  // [rows, n], or null and
    uint8_t *rounded;
    float levels_per_1;
};

void multiply_tile(const Int8Tile &tile);

}  // namespace llamavid

#endif
