// Rows normalized: y = (x - mean) / sqrt(variance + epsilon) * weight + bias, and what stands before and behind
// it in a transformer, the sum of two values and the rounding for the next product, while a row is in the
// first-level cache. Knows nothing of threads: who calls spreads the rows.

#ifndef LLAMAVID_LAYER_NORM_H
#define LLAMAVID_LAYER_NORM_H

#include <cstddef>
#include <cstdint>

namespace llamavid {

struct LayerNorm {
    size_t width;
    const float *weight, *bias;  // [width]
    float epsilon;
    float levels_per_1;  // 1 / step, where rows are rounded
};

// One row of each [width]; all but x and sum may be null.
struct NormRow {
    const float *x, *added;
    float *sum;  // x + added; memory of its own where nobody asks for it
    float *y;
    uint8_t *levels;  // of y: Note [Levels] of int8_product.h
};

// On processors of `runs_operators`.
void normalize(const LayerNorm &norm, const NormRow &row);

}  // namespace llamavid

#endif
