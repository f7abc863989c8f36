// The parts of an int4 product that are the processor's. Tiles are as large as those of int8.

#ifndef LLAMAVID_INT4_TILE_H
#define LLAMAVID_INT4_TILE_H

#include <cstddef>
#include <cstdint>

#include "int8_tile.h"

namespace llamavid {

constexpr size_t kLevelsPerByte = 2;
constexpr size_t kFewRows = 4;

// A block of a panel, Note [Nibbles] of int4_product.h.
constexpr size_t nibble_bytes(size_t block) { return block * kPanel / kLevelsPerByte; }
constexpr size_t block_bytes(size_t block) { return nibble_bytes(block) + kPanel * sizeof(float); }

// Some rows times some blocks of a panel, added to `sums`.
struct Int4Tile {
    size_t rows;
    size_t k, block;               // k: from a row of levels to the next
    size_t blocks;                 // that are added up
    const int8_t *levels;          // [rows, k], from the first of these blocks on, as the next two
    const float *scales;           // [rows, k / block]
    const int32_t *starts;         // [rows, k / block]
    const uint8_t *packed;         // these blocks, each of `block_bytes`
    float *sums;                   // [rows, 64]
};

// Their nibbles as bytes, and what is asked for meanwhile, in whole cache lines.
struct Int4Bytes {
    const uint8_t *weights;  // [blocks, block / 4, 64, 4]
    const uint8_t *soon, *soon_end;
};

// 1 to kTileRows.
void add_tile(const Int4Tile &tile, const Int4Bytes &bytes);

// 1 to kFewRows: unpacked on the way, which costs less than the time until the next are there from memory.
void add_few(const Int4Tile &tile);

// A block's nibbles, [block / 8, 64, 4], as bytes, [block / 4, 64, 4].
void unpack(const uint8_t *nibbles, size_t block, uint8_t *bytes);

// `size` neighbours of a row: their levels, what a level is worth, and the start of their sums.
void round_block(const float *x, size_t size, int8_t *levels, float *scale, int32_t *start);

}  // namespace llamavid

#endif
