// Activations, rounded to int8 in blocks, times a weight of four-bit levels with a scale for each block of
// a column. Knows nothing of graphs and threads: who calls spreads the parts.
//
// Note [Blocks]
//     `block` neighbours of a row have one step, their largest over 127, as ONNX Runtime rounds at accuracy
//     level 4. Sums within a block are exact; times both scales, blocks are added up in float32 from the
//     first to the last, whatever the number of rows: a row alone gives the same bits as among others.
//
// Note [Nibbles]
//     A weight [K, N] is kept as panels of 64 columns; a panel, block by block, as [block/8, 64, 4] bytes
//     and the block's 64 scales. A byte has 8 more than the level of a row in its low half, and of the row
//     four below in its high half. So a few instructions unpack it to [block/4, 64, 4] unsigned bytes,
//     which stay in the first-level cache while all rows of a chunk pass by; for few rows they stay in
//     registers. Eight times the sum of a
//     block's activations is too much: sums start that much lower.

#ifndef LLAMAVID_INT4_PRODUCT_H
#define LLAMAVID_INT4_PRODUCT_H

#include <cstddef>
#include <cstdint>

#include "packed_memory.h"

namespace llamavid {

struct Int4Tile;

struct Int4Weight {
    const uint8_t *levels;  // [K, N / 2], two neighbours of a row in a byte, the first in its low half
    const float *scales;    // [K / block, N]
    size_t k, n, block;     // n even, k whole blocks of 32, 64, 128 or 256
};

struct Int4Rows {
    size_t rows;
    const float *x;   // [rows, K]
    int8_t *levels;   // [rows, K], as the next two made by `round`
    float *scales;    // [rows, K / block]
    int32_t *starts;  // [rows, K / block], Note [Nibbles]
    float *y;         // [rows, N]
};

class Int4Product {
  public:
    // Copies all it needs. Throws `std::bad_alloc`.
    explicit Int4Product(const Int4Weight &weight);

    size_t k() const { return k_; }
    size_t n() const { return n_; }
    size_t blocks() const { return k_ / block_; }

    // On processors of `runs_operators`. First one row at a time, then part by part; rows, and then parts,
    // may run beside each other.
    void round(const Int4Rows &rows, size_t row) const;
    size_t parts(size_t rows) const;
    void multiply(const Int4Rows &rows, size_t part) const;

  private:
    size_t chunk(size_t rows) const;
    size_t panels() const;
    size_t panel_bytes() const;
    void add_many(const Int4Tile &panel) const;

    size_t k_, n_, block_;
    PackedMemory packed_;  // Note [Nibbles]
};

}  // namespace llamavid

#endif
