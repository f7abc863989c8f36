// How the work is cut, and the weight laid out; int4_product_avx512.cpp multiplies.

#include "int4_product.h"

#include <algorithm>
#include <cstring>

#include "int4_tile.h"
#include "kernels.h"
#include "row_chunks.h"

#ifdef LLAMAVID_X86

namespace llamavid {
namespace {

constexpr size_t kChunkRows = 42 * kTileRows;    // whose sums of a panel, 63 KiB, are on the stack
constexpr size_t kPiece = 256;  // rows of a panel that are unpacked at once: 16 KiB
constexpr size_t kScaleBytes = kPanel * sizeof(float);
constexpr uint8_t kLevelZero = 8;

// Eight rows of a panel, Note [Nibbles]; zeros beyond the last column.
void pack(const uint8_t *rows, size_t row_bytes, size_t bytes, uint8_t *to) {
    uint8_t levels[2 * kTogether][kPanel];
    for (size_t i = 0; i < 2 * kTogether; ++i) {
        uint8_t pairs[kPanel / kLevelsPerByte] = {};
        std::memcpy(pairs, rows + i * row_bytes, bytes);
        for (size_t j = 0; j < sizeof pairs; ++j) {
            levels[i][2 * j] = (pairs[j] & 0x0f) ^ kLevelZero;
            levels[i][2 * j + 1] = (pairs[j] >> 4) ^ kLevelZero;
        }
    }
    uint8_t both[kTogether][kPanel];
    for (size_t i = 0; i < kTogether; ++i) {
        for (size_t j = 0; j < kPanel; ++j) {
            both[i][j] = static_cast<uint8_t>(levels[i][j] | levels[i + kTogether][j] << 4);
        }
    }
    for (size_t j = 0; j < kPanel; ++j) {
        for (size_t i = 0; i < kTogether; ++i) to[j * kTogether + i] = both[i][j];
    }
}

}  // namespace

Int4Product::Int4Product(const Int4Weight &weight)
    : k_(weight.k), n_(weight.n), block_(weight.block),
      packed_(packed_memory(panels() * panel_bytes())) {
    const size_t row_bytes = n_ / kLevelsPerByte;
    uint8_t *to = packed_.get();
    for (size_t column = 0; column < n_; column += kPanel) {
        const size_t columns = std::min(kPanel, n_ - column);
        for (size_t row = 0; row < k_; row += 2 * kTogether) {
            const uint8_t *rows = weight.levels + row * row_bytes + column / kLevelsPerByte;
            pack(rows, row_bytes, columns / kLevelsPerByte, to);
            to += kPanel * kTogether;
            if ((row + 2 * kTogether) % block_) continue;
            std::memset(to, 0, kScaleBytes);
            std::memcpy(to, weight.scales + row / block_ * n_ + column, columns * sizeof(float));
            to += kScaleBytes;
        }
    }
}

size_t Int4Product::panels() const { return up(n_, kPanel); }

size_t Int4Product::panel_bytes() const { return blocks() * block_bytes(block_); }

void Int4Product::round(const Int4Rows &rows, size_t row) const {
    for (size_t block = 0; block < blocks(); ++block) {
        const size_t at = row * k_ + block * block_, scale = row * blocks() + block;
        round_block(rows.x + at, block_, rows.levels + at, rows.scales + scale, rows.starts + scale);
    }
}

size_t Int4Product::chunk(size_t rows) const { return chunk_of(rows, k_, kChunkRows); }

size_t Int4Product::parts(size_t rows) const { return rows ? up(rows, chunk(rows)) * panels() : 0; }

void Int4Product::multiply(const Int4Rows &rows, size_t part) const {
    alignas(kCacheLine) float sums[kChunkRows * kPanel];
    const size_t chunk = this->chunk(rows.rows), panel = part % panels(), column = panel * kPanel;
    const size_t first = part / panels() * chunk, count = std::min(chunk, rows.rows - first);
    Int4Tile tile{};
    tile.rows = count;
    tile.k = k_;
    tile.block = block_;
    tile.blocks = blocks();
    tile.levels = rows.levels + first * k_;
    tile.scales = rows.scales + first * blocks();
    tile.starts = rows.starts + first * blocks();
    tile.packed = packed_.get() + panel * panel_bytes();
    tile.sums = sums;

    std::memset(sums, 0, count * kScaleBytes);
    if (count <= kFewRows) {
        add_few(tile);
    } else {
        add_many(tile);
    }
    const size_t columns = std::min(kPanel, n_ - column);
    for (size_t row = 0; row < count; ++row) {
        std::memcpy(rows.y + (first + row) * n_ + column, sums + row * kPanel, columns * sizeof(float));
    }
}

// Piece by piece of the panel, all tiles of the rows. Meanwhile the next piece is fetched, which of the last
// is the first of the next panel: this thread goes on with it, most likely.
void Int4Product::add_many(const Int4Tile &panel) const {
    alignas(kCacheLine) uint8_t weights[kPiece * kPanel];
    const uint8_t *end = packed_.get() + panels() * panel_bytes();
    const size_t tiles = up(panel.rows, kTileRows);
    Int4Tile tile = panel;
    for (size_t block = 0; block < panel.blocks; block += tile.blocks) {
        tile.blocks = std::min(kPiece / block_, panel.blocks - block);
        tile.packed = panel.packed + block * block_bytes(block_);
        for (size_t i = 0; i < tile.blocks; ++i) {
            unpack(tile.packed + i * block_bytes(block_), block_, weights + i * block_ * kPanel);
        }
        const uint8_t *next = tile.packed + tile.blocks * block_bytes(block_);
        const size_t lines = std::min<size_t>(end - next, tile.blocks * block_bytes(block_)) / kCacheLine;
        for (size_t i = 0; i < tiles; ++i) {
            const size_t row = i * kTileRows;
            tile.rows = std::min(kTileRows, panel.rows - row);
            tile.levels = panel.levels + row * k_ + block * block_;
            tile.scales = panel.scales + row * blocks() + block;
            tile.starts = panel.starts + row * blocks() + block;
            tile.sums = panel.sums + row * kPanel;
            const uint8_t *soon = next + i * lines / tiles * kCacheLine;
            add_tile(tile, {weights, soon, next + (i + 1) * lines / tiles * kCacheLine});
        }
    }
}

}  // namespace llamavid

#endif
