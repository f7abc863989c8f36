/* Whatever instructions make them, pixels are the same bits as by the plain code.
 *
 *   simd_test           every path of this processor, over some hundred pictures of every format
 *   simd_test NAME      that LLAMAVID_SIMD, set by the caller, made NAME the one that runs;
 *                       "none": that it is refused */

#if defined(__linux__)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llamavid/runtime.h"

static const float MEAN[3] = LLAMAVID_CLIP_MEAN, STD[3] = LLAMAVID_CLIP_STD;

static uint32_t next_random(void) {  /* xorshift32: the same pictures everywhere */
    static uint32_t state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static int between(int low, int high) { return low + (int)(next_random() % (uint32_t)(high - low + 1)); }

/* What a picture and its pixels are made of; `padding` bytes between rows, which go up where `flipped`. */
typedef struct Case {
    llamavid_format format;
    llamavid_matrix matrix;
    llamavid_dtype dtype;
    int full_range, height, width, padding, flipped, size;
} Case;

static Case random_case(void) {
    static const int SIZES[] = {1, 7, 21, 22, 32, 64, 97, 224};
    Case one;
    one.format = (llamavid_format)between(0, 2);
    one.matrix = (llamavid_matrix)between(0, 1);
    one.dtype = (llamavid_dtype)between(0, 1);
    one.full_range = between(0, 1);
    one.height = between(1, between(1, 400));
    one.width = between(1, between(1, 400));
    one.padding = between(0, 1) * between(0, 70);
    one.flipped = between(0, 1);
    one.size = SIZES[between(0, 7)];
    return one;
}

/* Memory whose end is the end of what may be read. */
typedef struct Block {
    uint8_t *bytes;
    void *whole;
    size_t whole_bytes;
} Block;

#if defined(__linux__)
static Block opened(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    uint8_t *whole = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    Block block = {NULL, whole, room + page};
    if (whole != MAP_FAILED && !mprotect(whole + room, page, PROT_NONE)) block.bytes = whole + room - bytes;
    return block;
}
static void closed(Block block) {
    if (block.whole) munmap(block.whole, block.whole_bytes);
}
#else
static Block opened(size_t bytes) {
    uint8_t *whole = malloc(bytes);
    Block block = {whole, whole, bytes};
    return block;
}
static void closed(Block block) { free(block.whole); }
#endif

/* Half the time black and white, whose overshoot is cut off. */
static void draw(uint8_t *rgb, size_t bytes) {
    const int black_and_white = between(0, 1);
    for (size_t i = 0; i < bytes; ++i) {
        const uint8_t noise = (uint8_t)(next_random() >> 11);
        rgb[i] = black_and_white ? (uint8_t)(noise / 128 * 255) : noise;
    }
}

/* Rows and bytes of a row; a format's other planes have none. */
static void plane_size(const Case *one, int plane, int *rows, int *row_bytes) {
    const int half = (one->width + 1) / 2;
    *rows = plane ? (one->height + 1) / 2 : one->height;
    *row_bytes = one->format == LLAMAVID_RGB24  ? (plane ? 0 : one->width * 3)
                 : plane == 0                   ? one->width
                 : one->format == LLAMAVID_NV12 ? (plane == 1 ? half * 2 : 0)
                                                : half;
}

/* The case's picture, each plane in a block of its own; returns whether there was memory. */
static int drawn(const Case *one, llamavid_picture *picture, Block blocks[3]) {
    const llamavid_picture empty = {one->format, one->height, one->width,    {0},
                                    {0},         one->matrix, one->full_range};
    *picture = empty;
    for (int plane = 0; plane < 3; ++plane) {
        int rows, row_bytes;
        plane_size(one, plane, &rows, &row_bytes);
        const ptrdiff_t stride = row_bytes + one->padding;
        const size_t bytes = (size_t)stride * (size_t)(rows - 1) + (size_t)row_bytes;
        blocks[plane] = opened(row_bytes ? bytes : 1);
        if (!blocks[plane].bytes) return 0;
        if (!row_bytes) continue;
        draw(blocks[plane].bytes, bytes);
        picture->planes[plane] = blocks[plane].bytes + (one->flipped ? stride * (rows - 1) : 0);
        picture->row_stride_bytes[plane] = one->flipped ? -stride : stride;
    }
    return 1;
}

static int differs(const Case *one) {
    const size_t pixels_bytes =
        3 * (one->dtype == LLAMAVID_FLOAT32 ? 4u : 2u) * (size_t)one->size * (size_t)one->size;
    llamavid_picture picture;
    Block blocks[3] = {{0}, {0}, {0}};
    void *plain = malloc(pixels_bytes), *fast = malloc(pixels_bytes);
    int wrong = !drawn(one, &picture, blocks) || !plain || !fast;
    if (!wrong) {
        const char *name;
        wrong = llamavid_pixels_from_picture_by("scalar", &picture, one->size, MEAN, STD, one->dtype, plain);
        for (size_t i = 0; (name = llamavid_simd_at(i)); ++i) {
            memset(fast, 255, pixels_bytes);
            if (!llamavid_pixels_from_picture_by(name, &picture, one->size, MEAN, STD, one->dtype, fast) &&
                !memcmp(plain, fast, pixels_bytes))
                continue;
            fprintf(stderr, "%s: format %d, %d x %d, padding %d, flipped %d, to %d of dtype %d\n", name,
                    one->format, one->height, one->width, one->padding, one->flipped, one->size, one->dtype);
            wrong = 1;
        }
    }
    for (int plane = 0; plane < 3; ++plane) closed(blocks[plane]);
    free(plain);
    free(fast);
    return wrong;
}

static int is_what_runs(const char *name) {
    const uint8_t rgb[12] = {0};
    float pixels[12];
    const char *chosen = llamavid_simd();
    const llamavid_status status = llamavid_pixels_from_rgb(rgb, 2, 2, 6, 2, MEAN, STD, pixels);
    if (strcmp(name, "none") == 0) return !chosen && status == LLAMAVID_BAD_SIMD;
    return chosen && strcmp(chosen, name) == 0 && status == LLAMAVID_OK;
}

int main(int count, char **words) {
    if (count > 1) return !is_what_runs(words[1]);
    int failures = 0;
    for (int i = 0; i < 500; ++i) {
        const Case one = random_case();
        failures += differs(&one);
    }
    for (size_t i = 0; llamavid_simd_at(i); ++i) printf("%s ", llamavid_simd_at(i));
    printf("\n");
    return failures != 0;
}
