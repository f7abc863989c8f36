/* Whatever instructions make them, pixels are the same bits as by the plain code.
 *
 *   simd_test           every path of this processor, over some hundred pictures
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

/* What a picture and its pixels are made of; rows lie `stride` bytes apart, upwards where it is negative. */
typedef struct Case {
    int height, width, stride, size;
} Case;

static Case random_case(void) {
    static const int SIZES[] = {1, 7, 21, 22, 32, 64, 97, 224};
    Case one;
    one.height = between(1, between(1, 400));
    one.width = between(1, between(1, 400));
    one.stride = one.width * 3 + between(0, 1) * between(0, 70);
    if (between(0, 1)) one.stride = -one.stride;
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
static void closed(Block block) { munmap(block.whole, block.whole_bytes); }
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

static llamavid_status run(const char *simd, const Case *one, const uint8_t *rgb, float *pixels) {
    const uint8_t *top = one->stride < 0 ? rgb - (ptrdiff_t)one->stride * (one->height - 1) : rgb;
    return llamavid_pixels_from_rgb_by(simd, top, one->height, one->width, one->stride, one->size, MEAN, STD,
                                       pixels);
}

static int differs(const Case *one) {
    const size_t row_bytes = (size_t)one->width * 3;
    const size_t bytes = (size_t)abs(one->stride) * (size_t)(one->height - 1) + row_bytes;
    const size_t pixels_bytes = 3 * sizeof(float) * (size_t)one->size * (size_t)one->size;
    const Block rgb = opened(bytes);
    float *plain = malloc(pixels_bytes), *fast = malloc(pixels_bytes);
    int wrong = !rgb.bytes || !plain || !fast;
    if (!wrong) {
        const char *name;
        draw(rgb.bytes, bytes);
        wrong = run("scalar", one, rgb.bytes, plain) != LLAMAVID_OK;
        for (size_t i = 0; (name = llamavid_simd_at(i)); ++i) {
            memset(fast, 255, pixels_bytes);
            if (!run(name, one, rgb.bytes, fast) && !memcmp(plain, fast, pixels_bytes)) continue;
            fprintf(stderr, "%s: %d x %d, stride %d, to %d\n", name, one->height, one->width, one->stride,
                    one->size);
            wrong = 1;
        }
    }
    closed(rgb);
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
    for (int i = 0; i < 300; ++i) {
        const Case one = random_case();
        failures += differs(&one);
    }
    for (size_t i = 0; llamavid_simd_at(i); ++i) printf("%s ", llamavid_simd_at(i));
    printf("\n");
    return failures != 0;
}
