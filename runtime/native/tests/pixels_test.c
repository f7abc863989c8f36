/* llamavid_pixels_from_picture and its short form as a C program meets them. Equality with PIL and
 * FFmpeg on every kind of picture is held by tests/runtime/test_pixels.py and test_yuv.py; here
 * recordings stand for it. */

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

/* Planes of a picture without symmetry, each padded. */
enum { YUV_HEIGHT = 9, YUV_WIDTH = 13, YUV_STRIDE = 32, HALF_HEIGHT = 5, HALF_WIDTH = 7 };

typedef struct Planes {
    uint8_t y[YUV_HEIGHT * YUV_STRIDE], u[HALF_HEIGHT * YUV_STRIDE], v[HALF_HEIGHT * YUV_STRIDE];
    uint8_t pairs[HALF_HEIGHT * YUV_STRIDE];
} Planes;

static Planes drawn_planes(void) {
    Planes planes;
    for (int i = 0; i < YUV_HEIGHT * YUV_STRIDE; ++i) planes.y[i] = (uint8_t)(i * 37 + i / 5 * 11);
    for (int i = 0; i < HALF_HEIGHT * YUV_STRIDE; ++i) {
        planes.u[i] = (uint8_t)(i * 7);
        planes.v[i] = (uint8_t)(255 - i * 5);
    }
    for (int y = 0; y < HALF_HEIGHT; ++y) {
        for (int x = 0; x < HALF_WIDTH; ++x) {
            planes.pairs[y * YUV_STRIDE + 2 * x] = planes.u[y * YUV_STRIDE + x];
            planes.pairs[y * YUV_STRIDE + 2 * x + 1] = planes.v[y * YUV_STRIDE + x];
        }
    }
    return planes;
}

static llamavid_picture planar(const Planes *planes) {
    const llamavid_picture picture = {LLAMAVID_YUV420P, YUV_HEIGHT, YUV_WIDTH,
                                      {planes->y, planes->u, planes->v},
                                      {YUV_STRIDE, YUV_STRIDE, YUV_STRIDE}, LLAMAVID_BT601, 0};
    return picture;
}

static void yuv_becomes_the_rgb_that_ffmpeg_gives(void) {
    static const struct {
        uint8_t y, u, v;
        llamavid_matrix matrix;
        int32_t full_range;
        uint8_t rgb[3];
    } EXPECTED[] = {
        {81, 90, 240, LLAMAVID_BT601, 0, {253, 0, 0}},     {145, 54, 34, LLAMAVID_BT601, 0, {0, 254, 0}},
        {200, 30, 140, LLAMAVID_BT601, 0, {233, 242, 16}}, {200, 30, 140, LLAMAVID_BT601, 1, {216, 224, 26}},
        {200, 30, 140, LLAMAVID_BT709, 0, {235, 227, 6}},  {200, 30, 140, LLAMAVID_BT709, 1, {218, 212, 18}},
    };
    for (size_t i = 0; i < sizeof EXPECTED / sizeof *EXPECTED; ++i) {
        float pixels[3];
        const llamavid_picture picture = {LLAMAVID_YUV420P, 1, 1,
                                          {&EXPECTED[i].y, &EXPECTED[i].u, &EXPECTED[i].v}, {1, 1, 1},
                                          EXPECTED[i].matrix, EXPECTED[i].full_range};
        CHECK(!llamavid_pixels_from_picture(&picture, 1, ZERO, ONE, LLAMAVID_FLOAT32, pixels));
        for (int channel = 0; channel < 3; ++channel) {
            CHECK(lroundf(pixels[channel] * 255) == EXPECTED[i].rgb[channel]);
        }
    }
}

static void yuv_may_be_planar_or_paired_padded_or_stored_from_the_bottom(void) {
    const Planes planes = drawn_planes();
    llamavid_picture picture = planar(&planes), paired = picture;
    Planes flipped = planes;
    float expected[VALUES], pixels[VALUES];
    CHECK(!llamavid_pixels_from_picture(&picture, SIZE, MEAN, STD, LLAMAVID_FLOAT32, expected));

    paired.format = LLAMAVID_NV12;
    paired.planes[1] = planes.pairs;
    paired.planes[2] = NULL;
    CHECK(!llamavid_pixels_from_picture(&paired, SIZE, MEAN, STD, LLAMAVID_FLOAT32, pixels));
    CHECK(memcmp(pixels, expected, sizeof pixels) == 0);

    for (int y = 0; y < YUV_HEIGHT; ++y)
        memcpy(flipped.y + (YUV_HEIGHT - 1 - y) * YUV_STRIDE, planes.y + y * YUV_STRIDE, YUV_STRIDE);
    picture.planes[0] = flipped.y + (YUV_HEIGHT - 1) * YUV_STRIDE;
    picture.row_stride_bytes[0] = -YUV_STRIDE;
    CHECK(!llamavid_pixels_from_picture(&picture, SIZE, MEAN, STD, LLAMAVID_FLOAT32, pixels));
    CHECK(memcmp(pixels, expected, sizeof pixels) == 0);
}

static void float16_is_the_float32_rounded_to_the_nearest_even(void) {
    static const struct {
        float value;
        uint16_t half;
    } EXPECTED[] = {
        {0.0f, 0x0000},    {1.0f, 0x3c00},         {1.00048828125f, 0x3c00},  {1.00146484375f, 0x3c02},
        {65504, 0x7bff},   {65519.99f, 0x7bff},    {65520, 0x7c00},           {1e30f, 0x7c00},
        {6e-5f, 0x03ef},   {5.9604645e-8f, 1},     {2.9802322e-8f, 0},        {2.98023259e-8f, 1},
        {8.9406967e-8f, 2}, {6.1035156e-5f, 0x0400}, {6.10053539e-5f, 0x0400},
    };
    const uint8_t black[3] = {0, 0, 0};
    for (size_t i = 0; i < sizeof EXPECTED / sizeof *EXPECTED; ++i) {
        for (int sign = 0; sign < 2; ++sign) {  /* black less a mean is minus the mean */
            const float mean = sign ? EXPECTED[i].value : -EXPECTED[i].value, means[3] = {mean, mean, mean};
            const uint16_t minus = sign && EXPECTED[i].value != 0.0f ? 0x8000 : 0;
            uint16_t pixels[3];
            const llamavid_picture picture = {LLAMAVID_RGB24, 1, 1, {black}, {3}, LLAMAVID_BT601, 0};
            CHECK(!llamavid_pixels_from_picture(&picture, 1, means, ONE, LLAMAVID_FLOAT16, pixels));
            CHECK(pixels[0] == (EXPECTED[i].half | minus));
        }
    }
}

static llamavid_status status_as(llamavid_dtype dtype, const llamavid_picture *picture) {
    float pixels[VALUES];
    return llamavid_pixels_from_picture(picture, SIZE, MEAN, STD, dtype, pixels);
}

static llamavid_status status_of(llamavid_picture picture) { return status_as(LLAMAVID_FLOAT32, &picture); }

static void a_wrong_picture_is_named(void) {
    const Planes planes = drawn_planes();
    const llamavid_picture right = planar(&planes);
    llamavid_picture wrong;
    CHECK(status_of(right) == LLAMAVID_OK);
    CHECK(status_as(LLAMAVID_FLOAT32, NULL) == LLAMAVID_NULL_POINTER);
    CHECK(status_as((llamavid_dtype)99, &right) == LLAMAVID_BAD_FORMAT);
    wrong = right, wrong.format = (llamavid_format)99;
    CHECK(status_of(wrong) == LLAMAVID_BAD_FORMAT);
    wrong = right, wrong.format = (llamavid_format)-1;
    CHECK(status_of(wrong) == LLAMAVID_BAD_FORMAT);
    wrong = right, wrong.matrix = (llamavid_matrix)99;
    CHECK(status_of(wrong) == LLAMAVID_BAD_FORMAT);
    wrong = right, wrong.planes[2] = NULL;
    CHECK(status_of(wrong) == LLAMAVID_NULL_POINTER);
    wrong = right, wrong.width = 0;
    CHECK(status_of(wrong) == LLAMAVID_BAD_SIZE);
    wrong = right, wrong.row_stride_bytes[0] = YUV_WIDTH - 1;
    CHECK(status_of(wrong) == LLAMAVID_BAD_STRIDE);
    wrong = right, wrong.row_stride_bytes[1] = HALF_WIDTH - 1;
    CHECK(status_of(wrong) == LLAMAVID_BAD_STRIDE);
    wrong = right, wrong.row_stride_bytes[2] = 1 - HALF_WIDTH;
    CHECK(status_of(wrong) == LLAMAVID_BAD_STRIDE);
    wrong = right, wrong.format = LLAMAVID_NV12, wrong.row_stride_bytes[1] = 2 * HALF_WIDTH - 1;
    CHECK(status_of(wrong) == LLAMAVID_BAD_STRIDE);
}

static void every_status_has_its_own_words(void) {
    for (int a = LLAMAVID_OK; a <= LLAMAVID_BAD_FORMAT + 1; ++a) {  /* the last is none of them */
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
    yuv_becomes_the_rgb_that_ffmpeg_gives();
    yuv_may_be_planar_or_paired_padded_or_stored_from_the_bottom();
    float16_is_the_float32_rounded_to_the_nearest_even();
    a_wrong_picture_is_named();
    every_status_has_its_own_words();
    return failures != 0;
}
