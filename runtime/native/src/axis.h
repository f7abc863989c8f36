// Which source samples, and how much of each, an output sample is made of: Note [PIL's resize].

#ifndef LLAMAVID_AXIS_H
#define LLAMAVID_AXIS_H

#include "kernels.h"

namespace llamavid {

// What the centre `keep` of `resized` samples are made of, laid out for `kernels`.
Axis axis_of(int32_t source, int64_t resized, int32_t keep, const Kernels &kernels);

}  // namespace llamavid

#endif
