/* llamavid_stream_* as a C program meets them, on one thread; two threads are in stream_threads_test.c. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "check.h"
#include "llamavid/runtime.h"

enum { SIDE = 6, SIZE = 2, VALUES = 3 * SIZE * SIZE };

static uint8_t rgb[SIDE * SIDE * 3];

static llamavid_picture grey(int level) {
    llamavid_picture picture = {0};
    memset(rgb, level, sizeof rgb);
    picture.format = LLAMAVID_RGB24;
    picture.height = picture.width = SIDE;
    picture.planes[0] = rgb;
    picture.row_stride_bytes[0] = SIDE * 3;
    return picture;
}

static llamavid_stream_options options_of(int32_t capacity, double fps, llamavid_when_full when_full) {
    const llamavid_stream_options options = {
        SIZE, {0, 0, 0}, {1, 1, 1}, LLAMAVID_FLOAT32, capacity, fps, when_full};
    return options;
}

static llamavid_stream *opened(int32_t capacity, double fps, llamavid_when_full when_full) {
    const llamavid_stream_options options = options_of(capacity, fps, when_full);
    llamavid_stream *stream;
    CHECK(llamavid_stream_open(&options, &stream) == LLAMAVID_OK);
    return stream;
}

/* The frame's index is its grey level too. */
static llamavid_status push(llamavid_stream *stream, int index, double pts_seconds) {
    const llamavid_picture picture = grey(index);
    return llamavid_stream_push(stream, &picture, index, pts_seconds, 0);
}

/* The index of the next frame, or minus the status. */
static int next(llamavid_stream *stream) {
    float pixels[VALUES];
    llamavid_frame_info info;
    const llamavid_status status = llamavid_stream_next(stream, pixels, &info, 0);
    if (status) return -(int)status;
    CHECK(lroundf(pixels[0] * 255) == info.index && pixels[VALUES - 1] == pixels[0]);
    return (int)info.index;
}

static llamavid_stream_counters counted(llamavid_stream *stream) {
    const llamavid_stream_counters c = llamavid_stream_counters_of(stream);
    CHECK(c.pushed == c.kept + c.sampled_out + c.refused + c.timed_out);
    CHECK(c.kept == c.delivered + c.dropped + c.waiting);
    return c;
}

static void frames_come_out_in_order_with_their_times(void) {
    llamavid_stream *stream = opened(2, 0, LLAMAVID_BLOCK);
    float pixels[VALUES];
    llamavid_frame_info info;
    CHECK(push(stream, 3, 1.5) == LLAMAVID_OK);
    CHECK(push(stream, 4, 1.5) == LLAMAVID_OK);
    CHECK(llamavid_stream_next(stream, pixels, &info, 0) == LLAMAVID_OK);
    CHECK(info.index == 3 && info.pts_seconds == 1.5);
    CHECK(next(stream) == 4);
    CHECK(next(stream) == -LLAMAVID_TIMED_OUT);
    llamavid_stream_end(stream);
    CHECK(next(stream) == -LLAMAVID_ENDED);
    llamavid_stream_free(stream);
}

static void the_first_frame_of_each_period_is_kept(void) {
    /* 25 frames a second, two to keep; the times are those that a container's ticks come to. */
    llamavid_stream *stream = opened(100, 2, LLAMAVID_BLOCK);
    for (int i = 0; i < 50; ++i) {
        const int kept = i == 0 || i == 13 || i == 25 || i == 38;
        CHECK(push(stream, i, 0.1 + i / 25.0) == (kept ? LLAMAVID_OK : LLAMAVID_SKIPPED));
    }
    CHECK(push(stream, 50, 9.0) == LLAMAVID_OK);  /* after a gap: one frame, not one for each period missed */
    CHECK(push(stream, 51, 9.04) == LLAMAVID_SKIPPED);
    CHECK(push(stream, 52, 9.1) == LLAMAVID_OK);
    CHECK(counted(stream).sampled_out == 47);
    llamavid_stream_free(stream);
}

static void the_oldest_frame_makes_room(void) {
    llamavid_stream *stream = opened(2, 0, LLAMAVID_DROP_OLDEST);
    for (int i = 0; i < 5; ++i) CHECK(push(stream, i, i) == LLAMAVID_OK);
    const llamavid_stream_counters c = counted(stream);
    CHECK(c.kept == 5 && c.dropped == 3 && c.waiting == 2);
    CHECK(next(stream) == 3);
    CHECK(next(stream) == 4);
    llamavid_stream_free(stream);
}

static void a_full_queue_times_out_and_takes_the_same_picture_later(void) {
    llamavid_stream *stream = opened(1, 1, LLAMAVID_BLOCK);
    CHECK(push(stream, 0, 0) == LLAMAVID_OK);
    CHECK(push(stream, 1, 1) == LLAMAVID_TIMED_OUT);
    CHECK(push(stream, 2, 0.5) == LLAMAVID_SKIPPED);  /* not backwards: nothing was taken at 1 */
    CHECK(next(stream) == 0);
    CHECK(push(stream, 1, 1) == LLAMAVID_OK);
    CHECK(next(stream) == 1);
    CHECK(counted(stream).timed_out == 1);
    llamavid_stream_free(stream);
}

static void a_refused_picture_changes_nothing_but_its_counter(void) {
    llamavid_stream *stream = opened(1, 1, LLAMAVID_DROP_OLDEST);
    llamavid_picture bad = grey(0);
    CHECK(push(stream, 7, 5) == LLAMAVID_OK);
    CHECK(push(stream, 8, NAN) == LLAMAVID_BAD_TIME);
    CHECK(push(stream, 8, INFINITY) == LLAMAVID_BAD_TIME);
    CHECK(push(stream, 8, 4.9) == LLAMAVID_BAD_TIME);
    CHECK(llamavid_stream_push(stream, NULL, 8, 6, 0) == LLAMAVID_NULL_POINTER);
    bad.row_stride_bytes[0] = SIDE * 3 - 1;
    CHECK(llamavid_stream_push(stream, &bad, 8, 6, 0) == LLAMAVID_BAD_STRIDE);
    bad = grey(0);
    bad.height = 0;
    CHECK(llamavid_stream_push(stream, &bad, 8, 6, 0) == LLAMAVID_BAD_SIZE);
    CHECK(counted(stream).refused == 6 && counted(stream).dropped == 0);
    CHECK(push(stream, 8, 5.9) == LLAMAVID_SKIPPED);  /* the refused ones at 6 moved nothing on */
    CHECK(next(stream) == 7);
    llamavid_stream_free(stream);
}

static void times_out_of_all_proportion_do_no_harm(void) {
    llamavid_stream *stream = opened(8, 1e300, LLAMAVID_DROP_OLDEST);
    CHECK(push(stream, 0, -1.7e308) == LLAMAVID_OK);
    CHECK(push(stream, 1, 1.7e308) == LLAMAVID_OK);
    CHECK(push(stream, 2, 1.7e308) == LLAMAVID_OK);
    CHECK(counted(stream).kept == 3);
    llamavid_stream_free(stream);
}

static void a_closed_stream_gives_and_takes_nothing(void) {
    llamavid_stream *stream = opened(2, 0, LLAMAVID_BLOCK);
    CHECK(push(stream, 0, 0) == LLAMAVID_OK);
    llamavid_stream_close(stream);
    CHECK(push(stream, 1, 1) == LLAMAVID_CLOSED);
    CHECK(next(stream) == -LLAMAVID_CLOSED);
    CHECK(counted(stream).waiting == 1 && counted(stream).refused == 1);
    llamavid_stream_free(stream);

    stream = opened(2, 0, LLAMAVID_BLOCK);
    CHECK(push(stream, 0, 0) == LLAMAVID_OK);
    llamavid_stream_end(stream);
    CHECK(push(stream, 1, 1) == LLAMAVID_CLOSED);
    CHECK(next(stream) == 0);
    CHECK(next(stream) == -LLAMAVID_ENDED);
    llamavid_stream_free(stream);
}

static llamavid_status open_status(llamavid_stream_options options) {
    llamavid_stream *stream = (llamavid_stream *)&options;
    const llamavid_status status = llamavid_stream_open(&options, &stream);
    CHECK((status == LLAMAVID_OK) == (stream != NULL));
    llamavid_stream_free(stream);
    return status;
}

static void wrong_options_are_named(void) {
    const llamavid_stream_options good = options_of(1, 0, LLAMAVID_BLOCK);
    llamavid_stream_options bad = good;
    llamavid_stream *stream;
    float pixels[VALUES];
    CHECK(open_status(good) == LLAMAVID_OK);
    bad.image_size = 0, CHECK(open_status(bad) == LLAMAVID_BAD_SIZE), bad = good;
    bad.std[1] = NAN, CHECK(open_status(bad) == LLAMAVID_BAD_STD), bad = good;
    bad.dtype = (llamavid_dtype)2, CHECK(open_status(bad) == LLAMAVID_BAD_FORMAT), bad = good;
    bad.capacity = 0, CHECK(open_status(bad) == LLAMAVID_BAD_OPTION), bad = good;
    bad.fps = -1, CHECK(open_status(bad) == LLAMAVID_BAD_OPTION), bad = good;
    bad.fps = NAN, CHECK(open_status(bad) == LLAMAVID_BAD_OPTION), bad = good;
    bad.when_full = (llamavid_when_full)2, CHECK(open_status(bad) == LLAMAVID_BAD_OPTION), bad = good;
    bad.image_size = LLAMAVID_MAX_SIDE, bad.capacity = INT32_MAX;
    CHECK(open_status(bad) == LLAMAVID_OUT_OF_MEMORY);

    CHECK(llamavid_stream_open(NULL, &stream) == LLAMAVID_NULL_POINTER && !stream);
    CHECK(llamavid_stream_open(&good, NULL) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_stream_push(NULL, NULL, 0, 0, 0) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_stream_next(NULL, pixels, NULL, 0) == LLAMAVID_NULL_POINTER);
    CHECK(llamavid_stream_counters_of(NULL).pushed == 0);
    llamavid_stream_end(NULL), llamavid_stream_close(NULL), llamavid_stream_free(NULL);
}

static void every_status_of_a_stream_has_its_own_words(void) {
    const char *unknown = llamavid_status_text((llamavid_status)-1);
    for (int a = LLAMAVID_SKIPPED; a <= LLAMAVID_BUSY; ++a) {
        const char *words = llamavid_status_text((llamavid_status)a);
        CHECK(strcmp(words, unknown) != 0);
        for (int b = LLAMAVID_OK; b < a; ++b) {
            CHECK(strcmp(words, llamavid_status_text((llamavid_status)b)) != 0);
        }
    }
}

int main(void) {
    frames_come_out_in_order_with_their_times();
    the_first_frame_of_each_period_is_kept();
    the_oldest_frame_makes_room();
    a_full_queue_times_out_and_takes_the_same_picture_later();
    a_refused_picture_changes_nothing_but_its_counter();
    times_out_of_all_proportion_do_no_harm();
    a_closed_stream_gives_and_takes_nothing();
    wrong_options_are_named();
    every_status_of_a_stream_has_its_own_words();
    return failures != 0;
}
