// Levels of int8 times a weight of int8, and what follows at once: scales, bias, GELU, rounding to the
// levels of the next product. Knows nothing of graphs and threads: who calls spreads the parts.
//
// Note [Levels]
//     Activations come as unsigned bytes, 128 above their level, because the processor multiplies unsigned
//     by signed ones. The sum is therefore 128 times the column's weights too large, and starts that much
//     lower. It is exact: 255 * 128 * 65,536 fits an int32.
//
// Note [Panels]
//     A weight [K, N] is kept as panels of 64 columns, [K/4, 64, 4]: four neighbours of a column beside
//     each other, as one instruction adds them up. A panel streams from the second-level cache past six
//     rows at a time, whose 24 sums stay in registers. Rows are cut into chunks that stay in that cache
//     while all panels pass by.

#ifndef LLAMAVID_INT8_PRODUCT_H
#define LLAMAVID_INT8_PRODUCT_H

#include <cstddef>
#include <cstdint>
#include <vector>

#include "packed_memory.h"

namespace llamavid {

struct Int8Weight {
    const int8_t *levels;  // [K, N]
    size_t k, n;           // K a multiple of 4, at most 65,536
    const float *factors;  // [N]: what a level's product is worth
    const float *bias;     // [N], or null
};

struct Int8Rows {
    const uint8_t *levels;  // [rows, K], Note [Levels]
    size_t rows;
    bool gelu;
    float *floats;       // [rows, N], or null and
    uint8_t *rounded;    // [rows, N], of
    float levels_per_1;  // 1 / step
};

class Int8Product {
  public:
    // Copies all it needs. Throws `std::bad_alloc`.
    explicit Int8Product(const Int8Weight &weight);

    size_t k() const { return k_; }
    size_t n() const { return n_; }

    // On processors of `runs_operators`. How many calls of `multiply` make the whole; they may run beside
    // each other.
    size_t parts(size_t rows) const;
    void multiply(const Int8Rows &rows, size_t part) const;

  private:
    size_t chunk(size_t rows) const;
    size_t panels() const;

    size_t k_, n_;
    PackedMemory packed_;          // int8, Note [Panels]
    std::vector<int32_t> starts_;  // of sums, by column, up to whole panels as the next two
    std::vector<float> factors_, bias_;
};

}  // namespace llamavid

#endif
