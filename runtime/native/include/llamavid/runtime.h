/*
 * llamavid/runtime.h: the part of LLaMA-VID's runtime that needs no Python. C99, usable from C++.
 *
 * The rule
 *   The caller owns every buffer; a function reads and writes only what it is
 *   handed, keeps nothing between calls and returns nothing to free. Any
 *   function may be called from any thread at any time, also on the same input.
 *   What can fail returns a llamavid_status; after a failure the output buffer's
 *   content is unspecified and nothing else has happened.
 *   Results are the same bits on every processor, and the same as llamavid's in Python.
 *
 * A complete program: a grey picture made ready for the vision encoder
 *
 *   #include <stdio.h>
 *   #include <stdlib.h>
 *   #include <string.h>
 *   #include <llamavid/runtime.h>
 *
 *   int main(void) {
 *       enum { HEIGHT = 720, WIDTH = 1280, SIZE = 224 };
 *       const float mean[3] = LLAMAVID_CLIP_MEAN, std[3] = LLAMAVID_CLIP_STD;
 *       uint8_t *rgb = malloc(HEIGHT * WIDTH * 3);
 *       float *pixels = malloc(3 * SIZE * SIZE * sizeof(float));
 *       if (!rgb || !pixels) return 1;
 *       memset(rgb, 128, HEIGHT * WIDTH * 3);
 *
 *       llamavid_status status = llamavid_pixels_from_rgb(
 *           rgb, HEIGHT, WIDTH, WIDTH * 3, SIZE, mean, std, pixels);
 *       if (status == LLAMAVID_OK) printf("%f\n", pixels[0]);  // 0.076336: (128 / 255 - mean) / std
 *       else fprintf(stderr, "%s\n", llamavid_status_text(status));
 *
 *       free(rgb);
 *       free(pixels);
 *       return status != LLAMAVID_OK;
 *   }
 *
 *   cc program.c -lllamavid_runtime
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

#ifdef __cplusplus
extern "C" {
#endif

/* What a call came to. Numbers never change meaning; new ones may be added. */
typedef enum llamavid_status {
    LLAMAVID_OK = 0,
    LLAMAVID_NULL_POINTER = 1,
    LLAMAVID_BAD_SIZE = 2,
    LLAMAVID_BAD_STRIDE = 3,
    LLAMAVID_BAD_STD = 4,
    LLAMAVID_OUT_OF_MEMORY = 5,
    LLAMAVID_BAD_SIMD = 6
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

/*
 * Prepares one picture for the vision encoder, bit for bit as CLIP's preprocessing with PIL:
 * resizes the shorter side to image_size (bicubic, antialiased), crops the centre, takes away
 * the mean and divides by std.
 *
 *   rgb               uint8 [height, width, 3], red first: address of the top row
 *   height, width     1 to LLAMAVID_MAX_SIDE
 *   row_stride_bytes  from a row to the one below, 3 * width when rows are packed; negative when
 *                     the picture is stored bottom row first
 *   image_size        S, 1 to LLAMAVID_MAX_SIDE
 *   mean, std         [3], red, green, blue; std above 0
 *   pixels            float [3, S, S], written; must not overlap rgb
 *
 * Uses memory in proportion to height + width + image_size while it runs, never to their product.
 * Returns LLAMAVID_OK, _NULL_POINTER, _BAD_SIZE, _BAD_STRIDE (rows overlap), _BAD_STD,
 * _OUT_OF_MEMORY or _BAD_SIMD (see llamavid_simd).
 */
LLAMAVID_API llamavid_status llamavid_pixels_from_rgb(
    const uint8_t *rgb, int32_t height, int32_t width, ptrdiff_t row_stride_bytes,
    int32_t image_size, const float mean[3], const float std[3], float *pixels);

/*
 * Which instructions llamavid_pixels_from_rgb uses: "avx512" (with BW, VL, VBMI and VNNI), "avx2",
 * "neon" or "scalar"; static. The fastest that the processor has, unless the environment variable
 * LLAMAVID_SIMD names another; it is read once, at the first call. NULL where it names one that
 * this processor does not have: then llamavid_pixels_from_rgb refuses with LLAMAVID_BAD_SIMD.
 */
LLAMAVID_API const char *llamavid_simd(void);

/* Those that run on this processor, fastest first, "scalar" last; static; NULL past the last. */
LLAMAVID_API const char *llamavid_simd_at(size_t index);

/* llamavid_pixels_from_rgb by the instructions of that name, whatever LLAMAVID_SIMD says. */
LLAMAVID_API llamavid_status llamavid_pixels_from_rgb_by(
    const char *simd, const uint8_t *rgb, int32_t height, int32_t width, ptrdiff_t row_stride_bytes,
    int32_t image_size, const float mean[3], const float std[3], float *pixels);

#ifdef __cplusplus
}
#endif

#endif /* LLAMAVID_RUNTIME_H */
