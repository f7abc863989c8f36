/* llamavid_pixels_from_rgb as a C program meets it. Equality with PIL on every kind of
 * picture is held by tests/runtime/test_pixels.py; here two recordings stand for it. */

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "llamavid/runtime.h"

enum { MAX_BYTES = 9 * 16 * 3, SIZE = 4, VALUES = 3 * SIZE * SIZE };

static const float MEAN[3] = LLAMAVID_CLIP_MEAN, STD[3] = LLAMAVID_CLIP_STD;
static const float ZERO[3] = {0, 0, 0}, ONE[3] = {1, 1, 1};

static int failures = 0;

#define CHECK(truth) \
    ((truth) ? (void)0 : (void)(++failures, fprintf(stderr, "line %d: not so: %s\n", __LINE__, #truth)))

/* A picture without symmetry, its rows packed. */
static void draw(uint8_t *rgb, int height, int width) {
    for (int i = 0; i < height * width * 3; ++i) rgb[i] = (uint8_t)(i * 37 + i / 5 * 11);
}

/* With mean 0 and std 1 a pixel times 255 is the resized byte. */
static int resizes_to(int height, int width, const uint8_t expected[SIZE][SIZE][3]) {
    uint8_t rgb[MAX_BYTES];
    float pixels[3][SIZE][SIZE];
    draw(rgb, height, width);
    if (llamavid_pixels_from_rgb(rgb, height, width, width * 3, SIZE, ZERO, ONE, &pixels[0][0][0])) return 0;
    for (int y = 0; y < SIZE; ++y)
        for (int x = 0; x < SIZE; ++x)
            for (int channel = 0; channel < 3; ++channel)
                if (lroundf(pixels[channel][y][x] * 255) != expected[y][x][channel]) return 0;
    return 1;
}

static void a_picture_is_resized_to_the_bytes_that_pil_gives(void) {
    static const uint8_t shrunk[SIZE][SIZE][3] = {
        {{147, 67, 117}, {150, 142, 97}, {120, 165, 101}, {90, 131, 172}},
        {{169, 94, 101}, {132, 162, 80}, {102, 146, 165}, {102, 116, 157}},
        {{149, 134, 78}, {115, 161, 131}, {84, 126, 167}, {160, 99, 138}},
        {{134, 176, 61}, {93, 138, 138}, {126, 110, 157}, {175, 87, 122}},
    };
    static const uint8_t enlarged[SIZE][SIZE][3] = {
        {{47, 17, 59}, {58, 52, 95}, {94, 122, 167}, {113, 157, 203}},
        {{193, 0, 47}, {165, 31, 83}, {112, 112, 155}, {86, 153, 191}},
        {{255, 57, 33}, {211, 77, 69}, {117, 117, 141}, {69, 136, 177}},
        {{232, 207, 21}, {190, 184, 57}, {107, 135, 129}, {65, 109, 165}},
    };
    CHECK(resizes_to(9, 13, shrunk));
    CHECK(resizes_to(3, 2, enlarged));
}

static void a_flat_picture_keeps_its_colour(void) {
    uint8_t rgb[9 * 13 * 3];
    float pixels[VALUES];
    memset(rgb, 128, sizeof rgb);
    CHECK(llamavid_pixels_from_rgb(rgb, 9, 13, 13 * 3, SIZE, MEAN, STD, pixels) == LLAMAVID_OK);
    CHECK(fabsf(pixels[0] - 0.076336f) < 1e-6f);  /* six digits, as the header gives it */
    for (int i = 1; i < SIZE * SIZE; ++i) CHECK(pixels[i] == pixels[0]);
}

static void rows_may_be_padded_or_stored_from_the_bottom(void) {
    enum { HEIGHT = 9, WIDTH = 13, STRIDE = 48 };
    uint8_t packed[HEIGHT * WIDTH * 3], padded[HEIGHT * STRIDE], flipped[HEIGHT * WIDTH * 3];
    float expected[VALUES], pixels[VALUES];
    draw(packed, HEIGHT, WIDTH);
    memset(padded, 255, sizeof padded);
    for (int y = 0; y < HEIGHT; ++y) {
        memcpy(padded + y * STRIDE, packed + y * WIDTH * 3, WIDTH * 3);
        memcpy(flipped + (HEIGHT - 1 - y) * WIDTH * 3, packed + y * WIDTH * 3, WIDTH * 3);
    }
    CHECK(!llamavid_pixels_from_rgb(packed, HEIGHT, WIDTH, WIDTH * 3, SIZE, MEAN, STD, expected));
    CHECK(!llamavid_pixels_from_rgb(padded, HEIGHT, WIDTH, STRIDE, SIZE, MEAN, STD, pixels));
    CHECK(memcmp(pixels, expected, sizeof pixels) == 0);
    const uint8_t *top = flipped + (HEIGHT - 1) * WIDTH * 3;
    CHECK(!llamavid_pixels_from_rgb(top, HEIGHT, WIDTH, -WIDTH * 3, SIZE, MEAN, STD, pixels));
    CHECK(memcmp(pixels, expected, sizeof pixels) == 0);
}

static void a_wrong_call_is_named(void) {
    uint8_t rgb[12] = {0};
    float pixels[VALUES];
    const float nan_std[3] = {1, NAN, 1};
    CHECK(llamavid_pixels_from_rgb(NULL, 2, 2, 6, SIZE, MEAN, STD, pixels) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_pixels_from_rgb(rgb, 2, 2, 6, SIZE, MEAN, STD, NULL) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_pixels_from_rgb(rgb, 0, 2, 6, SIZE, MEAN, STD, pixels) == LLAMAVID_BAD_SIZE);
    CHECK(llamavid_pixels_from_rgb(rgb, 2, -2, 6, SIZE, MEAN, STD, pixels) == LLAMAVID_BAD_SIZE);
    CHECK(llamavid_pixels_from_rgb(rgb, 2, 2, 6, 0, MEAN, STD, pixels) == LLAMAVID_BAD_SIZE);
    CHECK(llamavid_pixels_from_rgb(rgb, 2, 2, 6, INT32_MAX, MEAN, STD, pixels) == LLAMAVID_BAD_SIZE);
    CHECK(llamavid_pixels_from_rgb(rgb, 2, 2, 5, SIZE, MEAN, STD, pixels) == LLAMAVID_BAD_STRIDE);
    CHECK(llamavid_pixels_from_rgb(rgb, 2, 2, 6, SIZE, MEAN, ZERO, pixels) == LLAMAVID_BAD_STD);
    CHECK(llamavid_pixels_from_rgb(rgb, 2, 2, 6, SIZE, MEAN, nan_std, pixels) == LLAMAVID_BAD_STD);
    CHECK(llamavid_pixels_from_rgb_by("sse9", rgb, 2, 2, 6, SIZE, MEAN, STD, pixels) == LLAMAVID_BAD_SIMD);
    CHECK(llamavid_pixels_from_rgb_by(NULL, rgb, 2, 2, 6, SIZE, MEAN, STD, pixels) == LLAMAVID_NULL_POINTER);
}

static void every_status_has_its_own_words(void) {
    for (int a = LLAMAVID_OK; a <= LLAMAVID_BAD_SIMD + 1; ++a) {  /* the last is none of them */
        const char *words = llamavid_status_text((llamavid_status)a);
        for (int b = LLAMAVID_OK; b < a; ++b) {
            CHECK(strcmp(words, llamavid_status_text((llamavid_status)b)) != 0);
        }
    }
    CHECK(strchr(llamavid_version(), '.') != NULL);
}

int main(void) {
    a_picture_is_resized_to_the_bytes_that_pil_gives();
    a_flat_picture_keeps_its_colour();
    rows_may_be_padded_or_stored_from_the_bottom();
    a_wrong_call_is_named();
    every_status_has_its_own_words();
    return failures != 0;
}
