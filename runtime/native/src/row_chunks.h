// How the rows of a product are cut: chunks that stay in the second-level cache while all panels pass by.

#ifndef LLAMAVID_ROW_CHUNKS_H
#define LLAMAVID_ROW_CHUNKS_H

#include <algorithm>
#include <cstddef>

#include "int8_tile.h"

namespace llamavid {

constexpr size_t kChunkBytes = size_t{1} << 20;  // half of the second-level cache of servers since 2021

constexpr size_t up(size_t count, size_t whole) { return (count + whole - 1) / whole; }

// Rows of a chunk, of k bytes each: as few chunks as fit the cache and have no more than `most` rows, and
// all as long, in whole tiles.
inline size_t chunk_of(size_t rows, size_t k, size_t most) {
    const size_t fit = std::max(kTileRows, kChunkBytes / k / kTileRows * kTileRows);
    return up(up(rows, up(rows, std::min(fit, most))), kTileRows) * kTileRows;
}

}  // namespace llamavid

#endif
