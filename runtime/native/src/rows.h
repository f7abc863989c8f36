// The rows of a caller's picture as `narrow` reads them: RGB, made a few rows at a time where it is YUV.

#ifndef LLAMAVID_ROWS_H
#define LLAMAVID_ROWS_H

#include <vector>

#include "kernels.h"
#include "llamavid/runtime.h"

namespace llamavid {

// Whether `SourceRows` takes the picture.
llamavid_status checked(const llamavid_picture &picture);

// A plane of the caller's, whose rows may be read kReadAhead bytes past their end. The rows that lie last
// in memory are copied for that; what follows the others is the plane itself.
class ReadablePlane {
  public:
    ReadablePlane(const uint8_t *samples, int32_t height, size_t row_bytes, ptrdiff_t row_stride_bytes)
        : samples_(samples), height_(height), row_bytes_(row_bytes), stride_(row_stride_bytes) {}

    // Good until kRowsAtOnce more rows are asked for.
    const uint8_t *at(int32_t row);

  private:
    const uint8_t *samples_;
    int32_t height_;
    size_t row_bytes_;
    ptrdiff_t stride_;
    std::vector<uint8_t> copies_;
};

class SourceRows {
  public:
    // Of columns, those from the first span to the last will be read. Keeps nothing of `picture` but its
    // planes' addresses.
    SourceRows(const llamavid_picture &picture, Span first, Span last, const Kernels &kernels);

    // RGB from column 0 on, of which those columns hold; may be read kReadAhead bytes past its
    // end. Good until kRowsAtOnce more rows are asked for.
    const uint8_t *at(int32_t row);

  private:
    const llamavid_format format_;
    const YuvWeights weights_;
    const size_t left_, right_, pitch_;
    const Kernels &kernels_;
    std::vector<ReadablePlane> planes_;
    std::vector<uint8_t> rgb_;  // YUV only: row r at r % kRowsAtOnce
};

}  // namespace llamavid

#endif
