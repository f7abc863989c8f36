// The library's version, and its statuses in words.

#include "llamavid/runtime.h"

const char *llamavid_version(void) { return LLAMAVID_VERSION; }  // from pyproject.toml, by CMake

const char *llamavid_status_text(llamavid_status status) {
    switch (status) {
        case LLAMAVID_OK: return "done";
        case LLAMAVID_NULL_POINTER: return "a pointer is NULL; every buffer must be given";
        case LLAMAVID_BAD_SIZE: return "a side is not from 1 to LLAMAVID_MAX_SIDE pixels";
        case LLAMAVID_BAD_STRIDE: return "rows overlap: a row stride is under the bytes of a row";
        case LLAMAVID_BAD_STD: return "std is not above 0 in every channel";
        case LLAMAVID_OUT_OF_MEMORY: return "not enough memory for the scratch of one picture";
        case LLAMAVID_BAD_SIMD: return "this processor runs no instructions of the name that was asked for";
        case LLAMAVID_BAD_FORMAT: return "a format, matrix or dtype is none that this version takes";
        case LLAMAVID_SKIPPED: return "left out: its time is not one of those to keep";
        case LLAMAVID_TIMED_OUT: return "nothing happened within the time to wait";
        case LLAMAVID_ENDED: return "the stream has ended, and every frame was taken";
        case LLAMAVID_CLOSED: return "the stream is closed";
        case LLAMAVID_BAD_TIME: return "a time is not a finite number, or earlier than the one before";
        case LLAMAVID_BAD_OPTION: return "capacity is under 1, fps is not from 0 up, or when_full is unknown";
        case LLAMAVID_BUSY: return "another thread is in this call: one pushes, one takes";
        case LLAMAVID_BAD_ID: return "a token id is neither a row of the table nor LLAMAVID_SLOT";
        case LLAMAVID_BAD_SLOT: return "the slots of the ids and the frames' rows do not fit each other";
        case LLAMAVID_BAD_LENGTH: return "length is not what llamavid_sequence_length gives";
    }
    return "a status this version of llamavid does not know";
}
