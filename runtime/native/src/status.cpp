// The library's version, and its statuses in words.

#include "llamavid/runtime.h"

const char *llamavid_version(void) { return LLAMAVID_VERSION; }  // from pyproject.toml, by CMake

const char *llamavid_status_text(llamavid_status status) {
    switch (status) {
        case LLAMAVID_OK: return "done";
        case LLAMAVID_NULL_POINTER: return "a pointer is NULL; every buffer must be given";
        case LLAMAVID_BAD_SIZE: return "a side is not from 1 to LLAMAVID_MAX_SIDE pixels";
        case LLAMAVID_BAD_STRIDE: return "rows overlap: the row stride is under 3 * width bytes";
        case LLAMAVID_BAD_STD: return "std is not above 0 in every channel";
        case LLAMAVID_OUT_OF_MEMORY: return "not enough memory for the scratch of one picture";
        case LLAMAVID_BAD_SIMD: return "this processor runs no instructions of the name that was asked for";
    }
    return "a status this version of llamavid does not know";
}
