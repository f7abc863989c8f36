// Attention of queries over keys and values, float32, head by head: softmax(scale q k^T) v, without a mask.
// Knows nothing about threads: a caller spreads the parts of each batch entry as it likes, each part with
// scratch of its own. Every result is the same whatever the batch, the thread and the order of the parts.
//
//     std::vector<Line> scratch(attention_scratch(shape) / sizeof(Line));    // struct alignas(64) Line
//     for (size_t part = 0; part < attention_parts(shape); ++part) attend(shape, rows, part, scratch.data());

#ifndef LLAMAVID_ATTENTION_H
#define LLAMAVID_ATTENTION_H

#include <cstddef>
#include <cstdint>

namespace llamavid {

// Widths of a head that `attend` takes are multiples of this.
constexpr size_t kHeadWidthStep = 8;

// At least one query, one key, one head; head_width a multiple of kHeadWidthStep.
struct AttentionShape {
    size_t queries, keys, heads, head_width;
    float scale;
};

// One batch entry: q and mixed [queries, heads * head_width], k and v [keys, heads * head_width]. Rows are
// a stride of floats apart, so that q, k and v may lie in one joined row. All is read where it lies; only
// `mixed` is written, and it must not overlap the others.
struct AttentionRows {
    const float *q, *k, *v;
    float *mixed;  // or null and
    uint8_t *rounded;  // what would be in `mixed`, as levels that are 128 more: Note [Levels] of int8_product.h
    size_t q_stride, k_stride, v_stride, mixed_stride;
    const float *q_bias, *mixed_bias;  // [heads * head_width], added to q and to what is mixed; or null
    float levels_per_1;                // 1 / step, where it is rounded
};

// On processors of `runs_operators`, as what follows. Bytes of a call's scratch, which starts at a multiple
// of 64; a multiple of 64 itself.
size_t attention_scratch(const AttentionShape &shape);

// Parts of one batch entry, a head's block of queries each; neighbours share the head's keys and values.
size_t attention_parts(const AttentionShape &shape);

// Writes one part of `mixed`. Scores of any finite size do; NaN makes NaN of the queries that meet it.
void attend(const AttentionShape &shape, const AttentionRows &rows, size_t part, void *scratch);

}  // namespace llamavid

#endif
