// How the work is cut, and the weight laid out; int8_product_avx512.cpp multiplies.

#include "int8_product.h"

#include <algorithm>
#include <cstring>

#include "int8_tile.h"
#include "kernels.h"
#include "row_chunks.h"

#ifdef LLAMAVID_X86

namespace llamavid {
namespace {

// Four rows of a panel, beside each other by column; zeros beyond the last column.
void pack(const Int8Weight &weight, size_t row, size_t column, int8_t *to, int32_t *starts) {
    int8_t four[kTogether][kPanel] = {};
    for (size_t i = 0; i < kTogether; ++i) {
        const int8_t *levels = weight.levels + (row + i) * weight.n + column;
        std::memcpy(four[i], levels, std::min(kPanel, weight.n - column));
    }
    for (size_t i = 0; i < kPanel; ++i) {
        for (size_t j = 0; j < kTogether; ++j) to[i * kTogether + j] = four[j][i];
    }
    for (size_t i = 0; i < kPanel; ++i) {
        starts[i] -= kZeroLevel * (four[0][i] + four[1][i] + four[2][i] + four[3][i]);
    }
}

}  // namespace

Int8Product::Int8Product(const Int8Weight &weight)
    : k_(weight.k), n_(weight.n), packed_(packed_memory(panels() * kPanel * k_)), starts_(panels() * kPanel),
      factors_(panels() * kPanel), bias_(panels() * kPanel) {
    std::copy(weight.factors, weight.factors + n_, factors_.begin());
    if (weight.bias) std::copy(weight.bias, weight.bias + n_, bias_.begin());
    for (size_t first = 0; first < n_; first += kPanel) {
        auto *to = reinterpret_cast<int8_t *>(packed_.get()) + first * k_;
        for (size_t row = 0; row < k_; row += kTogether, to += kPanel * kTogether) {
            pack(weight, row, first, to, &starts_[first]);
        }
    }
}

size_t Int8Product::panels() const { return up(n_, kPanel); }

size_t Int8Product::chunk(size_t rows) const { return chunk_of(rows, k_, rows); }

size_t Int8Product::parts(size_t rows) const { return rows ? up(rows, chunk(rows)) * panels() : 0; }

void Int8Product::multiply(const Int8Rows &rows, size_t part) const {
    const size_t chunk = this->chunk(rows.rows), column = part % panels() * kPanel;
    Int8Tile tile{};
    tile.k = k_;
    tile.n = n_;
    tile.columns = std::min(kPanel, n_ - column);
    const auto *packed = reinterpret_cast<const int8_t *>(packed_.get());
    tile.panel = packed + column * k_;
    tile.starts = &starts_[column];
    tile.factors = &factors_[column];
    tile.bias = &bias_[column];
    tile.gelu = rows.gelu;
    tile.levels_per_1 = rows.levels_per_1;
    const size_t first = part / panels() * chunk, last = std::min(first + chunk, rows.rows);
    // This thread goes on with the next panel, most likely: a slice of it is fetched with each tile.
    const int8_t *next = packed + (part + 1) % panels() * kPanel * k_;
    const size_t tiles = up(last - first, kTileRows);
    size_t done = 0;
    for (size_t row = first; row < last; row += kTileRows, ++done) {
        tile.soon = next + done * k_ / tiles * kPanel;
        tile.soon_end = next + (done + 1) * k_ / tiles * kPanel;
        tile.rows = std::min(kTileRows, last - row);
        tile.levels = rows.levels + row * k_;
        tile.floats = rows.floats ? rows.floats + row * n_ + column : nullptr;
        tile.rounded = rows.floats ? nullptr : rows.rounded + row * n_ + column;
        multiply_tile(tile);
    }
}

}  // namespace llamavid

#endif
