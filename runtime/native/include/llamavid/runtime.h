/*
 * llamavid/runtime.h: the part of LLaMA-VID's runtime that needs no Python. C99, usable from C++.
 *
 *   pixels     a picture to the vision encoder's input        llamavid_pixels_from_picture
 *   streams    pictures as they come, to those inputs         llamavid_stream_open, _push, _next, ...
 *   sequences  frame tokens and text to the language model's  llamavid_sequence
 *
 * The engines between them are the caller's. runtime/native/examples/camera.c goes all the way.
 *
 * The rule
 *   The caller owns every buffer; a function reads and writes only what it is handed and keeps
 *   none of it after it returned. A stream is the one thing to free. What can fail returns a
 *   llamavid_status; after a failure the output buffer's content is unspecified and nothing else
 *   has happened. Nothing is printed, no signal is touched, no thread is started.
 *   Functions without a stream may be called from any thread at any time, also on the same input;
 *   a stream says which thread may call what.
 *   Results are the same bits on every processor, and the same as llamavid's in Python.
 *
 * A complete program: of 60 grey pictures, 25 a second, one for each second is made ready
 *
 *   #include <stdio.h>
 *   #include <string.h>
 *   #include <llamavid/runtime.h>
 *
 *   enum { HEIGHT = 720, WIDTH = 1280, SIZE = 224 };
 *   static uint8_t rgb[HEIGHT * WIDTH * 3];
 *   static float pixels[3 * SIZE * SIZE];
 *
 *   int main(void) {
 *       const llamavid_picture picture = {LLAMAVID_RGB24, HEIGHT, WIDTH, {rgb}, {WIDTH * 3}, 0, 0};
 *       const llamavid_stream_options options = {
 *           SIZE, LLAMAVID_CLIP_MEAN, LLAMAVID_CLIP_STD, LLAMAVID_FLOAT32, 4, 1.0, LLAMAVID_BLOCK};
 *       llamavid_stream *stream;
 *       llamavid_frame_info frame;
 *       llamavid_status status = llamavid_stream_open(&options, &stream);
 *       if (status) return fprintf(stderr, "%s\n", llamavid_status_text(status)), 1;
 *
 *       memset(rgb, 128, sizeof rgb);
 *       for (int i = 0; i < 60; ++i)  // in a thread of its own, where more than the capacity is kept
 *           llamavid_stream_push(stream, &picture, i, i / 25.0, -1);
 *       llamavid_stream_end(stream);
 *
 *       while ((status = llamavid_stream_next(stream, pixels, &frame, -1)) == LLAMAVID_OK)
 *           printf("%g s: %f\n", frame.pts_seconds, pixels[0]);  // 0.076336: (128 / 255 - mean) / std
 *       llamavid_stream_free(stream);
 *       return status != LLAMAVID_ENDED;
 *   }
 *
 *   cc program.c $(pkg-config --cflags --libs llamavid_runtime)
 */
#ifndef LLAMAVID_RUNTIME_H
#define LLAMAVID_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define LLAMAVID_API __attribute__((visibility("default")))
#else
#define LLAMAVID_API
#endif

/* To C++ too, an enum of C is an int: a number that is none of its names is refused, not undefined. */
#ifdef __cplusplus
#define LLAMAVID_INT : int
#else
#define LLAMAVID_INT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What a call came to. Numbers never change meaning; new ones may be added. */
typedef enum llamavid_status LLAMAVID_INT {
    LLAMAVID_OK = 0,
    LLAMAVID_NULL_POINTER = 1,
    LLAMAVID_BAD_SIZE = 2,
    LLAMAVID_BAD_STRIDE = 3,
    LLAMAVID_BAD_STD = 4,
    LLAMAVID_OUT_OF_MEMORY = 5,
    LLAMAVID_BAD_SIMD = 6,
    LLAMAVID_BAD_FORMAT = 7,

    LLAMAVID_SKIPPED = 20, /* streams: from here to 26 */
    LLAMAVID_TIMED_OUT = 21,
    LLAMAVID_ENDED = 22,
    LLAMAVID_CLOSED = 23,
    LLAMAVID_BAD_TIME = 24,
    LLAMAVID_BAD_OPTION = 25,
    LLAMAVID_BUSY = 26,

    LLAMAVID_BAD_ID = 30, /* sequences: from here to 32 */
    LLAMAVID_BAD_SLOT = 31,
    LLAMAVID_BAD_LENGTH = 32
} llamavid_status;

/* The status as a sentence, in English, static; also for a number this version does not know. */
LLAMAVID_API const char *llamavid_status_text(llamavid_status status);

/* The version of the library, such as "0.1.0"; static. */
LLAMAVID_API const char *llamavid_version(void);

/* Longest side, of a picture or of the encoder's input, in pixels. */
#define LLAMAVID_MAX_SIDE (1 << 24)

/* What LLaMA-VID's encoders were trained with: red, green, blue, a byte of 255 being 1. */
#define LLAMAVID_CLIP_MEAN {0.48145466f, 0.4578275f, 0.40821073f}
#define LLAMAVID_CLIP_STD {0.26862954f, 0.26130258f, 0.27577711f}

typedef enum llamavid_format LLAMAVID_INT {
    LLAMAVID_RGB24 = 0,
    LLAMAVID_YUV420P = 1,
    LLAMAVID_NV12 = 2
} llamavid_format;
typedef enum llamavid_matrix LLAMAVID_INT { LLAMAVID_BT601 = 0, LLAMAVID_BT709 = 1 } llamavid_matrix;
typedef enum llamavid_dtype LLAMAVID_INT { LLAMAVID_FLOAT32 = 0, LLAMAVID_FLOAT16 = 1 } llamavid_dtype;

/*
 * A picture of the caller's: where its samples lie, and what they mean.
 *
 * YUV becomes RGB by FFmpeg's 16-bit arithmetic on x86, each chroma sample standing for two by two
 * pixels: the same bytes as its rgb24 for planar pictures of even height. Elsewhere FFmpeg
 * interpolates chroma, and bytes differ: by at most 3 where chroma is flat, by more at its edges.
 * NV12 gives the same as YUV420P. No picture in RGB is made: only what the crop keeps is
 * converted, four rows at a time.
 */
typedef struct llamavid_picture {
    llamavid_format format;
    int32_t height, width;         /* 1 to LLAMAVID_MAX_SIDE; chroma planes have half of each, rounded up */
    const uint8_t *planes[3];      /* addresses of the top rows. RGB24: one, red first. YUV420P: Y, U, V.
                                      NV12: Y, then pairs of U and V. The others NULL */
    ptrdiff_t row_stride_bytes[3]; /* from a row to the one below; negative: stored from the bottom */
    llamavid_matrix matrix;        /* YUV only; BT601 where a stream does not say */
    int32_t full_range;            /* YUV only: 0 = luma from 16 to 235 */
} llamavid_picture;

/*
 * Prepares one picture for the vision encoder, bit for bit as CLIP's preprocessing with PIL:
 * resizes the shorter side to image_size (bicubic, antialiased), crops the centre, takes away
 * the mean and divides by std.
 *
 *   image_size  S, 1 to LLAMAVID_MAX_SIDE
 *   mean, std   [3], red, green, blue; std above 0
 *   dtype       LLAMAVID_FLOAT32, or _FLOAT16: the same values, rounded to nearest, ties to even
 *   pixels      [3, S, S] of that type, aligned for it, written; must not overlap the picture
 *
 * Uses memory in proportion to height + width + image_size while it runs, never to their product.
 * Returns LLAMAVID_OK, _NULL_POINTER, _BAD_SIZE, _BAD_STRIDE (rows overlap), _BAD_STD,
 * _OUT_OF_MEMORY, _BAD_SIMD (see llamavid_simd) or _BAD_FORMAT (no such format, matrix or dtype).
 */
LLAMAVID_API llamavid_status llamavid_pixels_from_picture(
    const llamavid_picture *picture, int32_t image_size, const float mean[3], const float std[3],
    llamavid_dtype dtype, void *pixels);

/* The short form for packed RGB: uint8 [height, width, 3], red first, to float [3, S, S]. */
LLAMAVID_API llamavid_status llamavid_pixels_from_rgb(
    const uint8_t *rgb, int32_t height, int32_t width, ptrdiff_t row_stride_bytes,
    int32_t image_size, const float mean[3], const float std[3], float *pixels);

/*
 * Which instructions the functions above use: "avx512" (with BW, VL, VBMI and VNNI), "avx2",
 * "neon" or "scalar"; static. The fastest that the processor has, unless the environment variable
 * LLAMAVID_SIMD names another; it is read once, at the first call. NULL where it names one that
 * this processor does not have: then those functions refuse with LLAMAVID_BAD_SIMD.
 */
LLAMAVID_API const char *llamavid_simd(void);

/* Those that run on this processor, fastest first, "scalar" last; static; NULL past the last. */
LLAMAVID_API const char *llamavid_simd_at(size_t index);

/* The same by the instructions of that name, whatever LLAMAVID_SIMD says. */
LLAMAVID_API llamavid_status llamavid_pixels_from_picture_by(
    const char *simd, const llamavid_picture *picture, int32_t image_size, const float mean[3],
    const float std[3], llamavid_dtype dtype, void *pixels);
LLAMAVID_API llamavid_status llamavid_pixels_from_rgb_by(
    const char *simd, const uint8_t *rgb, int32_t height, int32_t width, ptrdiff_t row_stride_bytes,
    int32_t image_size, const float mean[3], const float std[3], float *pixels);

/*
 * A stream of frames: one thread pushes pictures as they come, another takes prepared pixels.
 *
 * Between them lies a queue of `capacity` slots, each holding the pixels of one frame: all memory
 * is taken when the stream is opened. Every picture comes with the time it is shown at, and that
 * time alone decides whether it is kept: of each 1/fps seconds since the first frame, the first
 * picture (at the very beginning or after it, give or take a microsecond).
 *
 * Who may call: llamavid_stream_push and _end, the producer's thread; llamavid_stream_next, the
 * consumer's; _close and _counters, any thread, at any time. A second thread in _push, or in _next,
 * is refused with LLAMAVID_BUSY. llamavid_stream_free: one thread, once the others are done.
 */
typedef struct llamavid_stream llamavid_stream;

/* What becomes of a picture that is to be kept while every slot is taken. */
typedef enum llamavid_when_full LLAMAVID_INT {
    LLAMAVID_BLOCK = 0,      /* push waits until the consumer takes one */
    LLAMAVID_DROP_OLDEST = 1 /* the oldest waiting frame makes room: what a camera needs */
} llamavid_when_full;

typedef struct llamavid_stream_options {
    int32_t image_size;   /* S, 1 to LLAMAVID_MAX_SIDE */
    float mean[3], std[3];
    llamavid_dtype dtype; /* of the pixels */
    int32_t capacity;     /* slots, 1 or more */
    double fps;           /* frames to keep for each second; 0 keeps all */
    llamavid_when_full when_full;
} llamavid_stream_options;

/* Which frame: `index` is the caller's, handed through. */
typedef struct llamavid_frame_info {
    int64_t index;
    double pts_seconds;
} llamavid_frame_info;

/*
 * What became of the pictures so far. At every moment
 *   pushed == kept + sampled_out + refused + timed_out
 *   kept   == delivered + dropped + waiting
 */
typedef struct llamavid_stream_counters {
    uint64_t pushed, kept, sampled_out, refused, timed_out;
    uint64_t dropped, delivered, waiting;
} llamavid_stream_counters;

/*
 * Opens a stream with (capacity + 2) * 3 * S * S values of memory: a slot more for either side to
 * work in. The caller frees it with llamavid_stream_free. Options are copied.
 * Returns LLAMAVID_OK, or, with *stream NULL, _NULL_POINTER, _BAD_SIZE, _BAD_STD, _BAD_FORMAT (dtype),
 * _BAD_OPTION (capacity, fps or when_full) or _OUT_OF_MEMORY.
 */
LLAMAVID_API llamavid_status llamavid_stream_open(const llamavid_stream_options *options,
                                                  llamavid_stream **stream);

/*
 * Prepares the picture, if its time is one to keep, and puts it in the queue. The picture is not
 * needed after the call. Times may not run backwards.
 *
 *   timeout_ms  how long to wait for room under LLAMAVID_BLOCK; negative waits for ever
 *
 * Returns LLAMAVID_OK (kept); LLAMAVID_SKIPPED (not one to keep: its samples were not looked at);
 * LLAMAVID_TIMED_OUT (no room in time); LLAMAVID_CLOSED (by the consumer, or ended before);
 * LLAMAVID_BAD_TIME (not a finite number, or earlier than the picture before); LLAMAVID_BUSY; or what
 * llamavid_pixels_from_picture returns. All but the first two change nothing but a counter: the same
 * picture may be pushed again.
 */
LLAMAVID_API llamavid_status llamavid_stream_push(llamavid_stream *stream, const llamavid_picture *picture,
                                                  int64_t index, double pts_seconds, int32_t timeout_ms);

/* No picture will follow. What waits can still be taken. */
LLAMAVID_API void llamavid_stream_end(llamavid_stream *stream);

/*
 * Takes the oldest waiting frame.
 *
 *   pixels      [3, S, S] of the stream's dtype, written
 *   info        written; may be NULL
 *   timeout_ms  how long to wait for a frame; negative waits for ever
 *
 * Returns LLAMAVID_OK, LLAMAVID_TIMED_OUT, LLAMAVID_ENDED (the producer ended it and nothing waits),
 * LLAMAVID_CLOSED, LLAMAVID_BUSY or LLAMAVID_NULL_POINTER.
 */
LLAMAVID_API llamavid_status llamavid_stream_next(llamavid_stream *stream, void *pixels,
                                                  llamavid_frame_info *info, int32_t timeout_ms);

/* Wakes whoever waits in push or next; both give LLAMAVID_CLOSED from now on. */
LLAMAVID_API void llamavid_stream_close(llamavid_stream *stream);

/* All zero for NULL. */
LLAMAVID_API llamavid_stream_counters llamavid_stream_counters_of(llamavid_stream *stream);

/* Frees it, NULL too. No thread may be in a call with it, or make one afterwards. */
LLAMAVID_API void llamavid_stream_free(llamavid_stream *stream);

/* In a prompt's token ids: frame tokens go here. */
#define LLAMAVID_SLOT (-200)

/* Frame tokens that follow each other; see llamavid_sequence_parts. */
typedef struct llamavid_rows {
    size_t first, count;
} llamavid_rows;

/*
 * What a sequence is made of. The frame tokens count as rows, frame by frame: for each frame its
 * context token, then its content tokens. Row r is token r % (1 + content_tokens) of frame
 * r / (1 + content_tokens). Arrays are packed, and aligned for the type of their values.
 */
typedef struct llamavid_sequence_parts {
    const void *ids;   /* [id_count]: token ids, and LLAMAVID_SLOT */
    size_t id_bytes;   /* 4: they are int32_t; 8: int64_t */
    size_t id_count;

    const void *table; /* [vocabulary, width]: text embeddings; may lie in a mapped file */
    llamavid_dtype table_dtype;
    size_t vocabulary;
    size_t width;      /* D, 1 or more */

    const void *context; /* [frames, 1, width] */
    const void *content; /* [frames, content_tokens, width] */
    llamavid_dtype context_dtype, content_dtype;
    size_t frames, content_tokens;

    const llamavid_rows *slots; /* [slot_count]: the rows of each slot, in the order of the ids; or NULL: */
    size_t slot_count;          /* then one slot takes all rows, or as many slots as rows one each */
} llamavid_sequence_parts;

/*
 * How many rows the sequence has: one for each id that is no slot, and those of the slots.
 * Returns as llamavid_sequence does.
 */
LLAMAVID_API llamavid_status llamavid_sequence_length(const llamavid_sequence_parts *parts, size_t *length);

/*
 * Gathers text embeddings and frame tokens into the language model's input, each row copied once.
 *
 *   dtype     of the sequence; values are converted, rounded to the nearest, ties to even
 *   sequence  [length, width] of that type, written; must not overlap the parts
 *   length    as llamavid_sequence_length gives it
 *
 * All is checked before anything is written. Returns LLAMAVID_OK, _NULL_POINTER, _BAD_FORMAT (a dtype
 * or id_bytes), _BAD_SIZE (no width, or more rows than a size_t counts), _BAD_ID (an id is neither
 * a row of the table nor LLAMAVID_SLOT), _BAD_SLOT (slots and rows do not fit each other) or
 * _BAD_LENGTH.
 */
LLAMAVID_API llamavid_status llamavid_sequence(const llamavid_sequence_parts *parts, llamavid_dtype dtype,
                                               void *sequence, size_t length);

#ifdef __cplusplus
}
#endif

#endif /* LLAMAVID_RUNTIME_H */
