// Memory that is a file's, mapped: its pages need not stay once they are read.

#ifndef LLAMAVID_MAPPED_FILE_H
#define LLAMAVID_MAPPED_FILE_H

#include <cstddef>

namespace llamavid {

// Whoever reads these bytes again has them from the file again; so nobody may have written to them. Does
// nothing for memory that is not a mapped file's, or where the system does not tell.
void let_go(const void *bytes, size_t count);

}  // namespace llamavid

#endif
