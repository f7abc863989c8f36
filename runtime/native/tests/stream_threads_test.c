/* One thread pushes, one takes, a third looks on: meant to run under the thread sanitizer too. */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "check.h"
#include "llamavid/runtime.h"

enum { SIDE = 8, SIZE = 4, VALUES = 3 * SIZE * SIZE, FRAMES = 3000 };

typedef struct producer {
    llamavid_stream *stream;
    int frames;
    int timeout_ms;
    llamavid_status last; /* what the last push came to */
} producer;

/* A frame's whole picture is index % 251: a torn one would show. */
static void *push_frames(void *given) {
    producer *work = given;
    for (int i = 0; i < work->frames; ++i) {
        uint8_t rgb[SIDE * SIDE * 3];
        llamavid_picture picture = {0};
        for (size_t at = 0; at < sizeof rgb; ++at) rgb[at] = (uint8_t)(i % 251);
        picture.height = picture.width = SIDE;
        picture.planes[0] = rgb;
        picture.row_stride_bytes[0] = SIDE * 3;
        work->last = llamavid_stream_push(work->stream, &picture, i, i / 25.0, work->timeout_ms);
        if (work->last == LLAMAVID_CLOSED) return NULL;
    }
    llamavid_stream_end(work->stream);
    return NULL;
}

/* The invariants hold whenever one looks. */
static void *look_on(void *stream) {
    const struct timespec pause = {0, 200 * 1000};
    llamavid_stream_counters c;
    do {
        c = llamavid_stream_counters_of(stream);
        CHECK(c.pushed == c.kept + c.sampled_out + c.refused + c.timed_out);
        CHECK(c.kept == c.delivered + c.dropped + c.waiting);
        nanosleep(&pause, NULL);
    } while (c.pushed < FRAMES);
    return NULL;
}

static llamavid_stream *opened(int32_t capacity, llamavid_when_full when_full) {
    const llamavid_stream_options options = {
        SIZE, {0, 0, 0}, {1, 1, 1}, LLAMAVID_FLOAT32, capacity, 0, when_full};
    llamavid_stream *stream;
    CHECK(llamavid_stream_open(&options, &stream) == LLAMAVID_OK);
    return stream;
}

static int is_whole(const float *pixels, int64_t index) {
    for (int i = 0; i < VALUES; ++i)
        if ((int)(pixels[i] * 255 + 0.5f) != index % 251) return 0;
    return 1;
}

static void every_frame_arrives_whole_or_is_counted(llamavid_when_full when_full) {
    llamavid_stream *stream = opened(3, when_full);
    producer work = {stream, FRAMES, -1, LLAMAVID_OK};
    pthread_t pushing, looking;
    float pixels[VALUES];
    llamavid_frame_info info;
    llamavid_status status;
    int64_t before = -1;
    uint64_t taken = 0;
    CHECK(!pthread_create(&pushing, NULL, push_frames, &work));
    CHECK(!pthread_create(&looking, NULL, look_on, stream));
    while ((status = llamavid_stream_next(stream, pixels, &info, -1)) == LLAMAVID_OK) {
        CHECK(info.index > before && info.pts_seconds == info.index / 25.0 && is_whole(pixels, info.index));
        before = info.index;
        ++taken;
    }
    CHECK(status == LLAMAVID_ENDED);
    pthread_join(pushing, NULL);
    pthread_join(looking, NULL);
    const llamavid_stream_counters c = llamavid_stream_counters_of(stream);
    CHECK(c.pushed == FRAMES && c.kept == FRAMES && c.waiting == 0 && c.delivered == taken);
    CHECK(before == FRAMES - 1);
    if (when_full == LLAMAVID_BLOCK) CHECK(taken == FRAMES);
    llamavid_stream_free(stream);
}

static void closing_wakes_a_push_that_waits(void) {
    for (int round = 0; round < 50; ++round) {
        llamavid_stream *stream = opened(1, LLAMAVID_BLOCK);
        producer work = {stream, FRAMES, -1, LLAMAVID_OK};
        pthread_t pushing;
        float pixels[VALUES];
        CHECK(!pthread_create(&pushing, NULL, push_frames, &work));
        for (int i = 0; i < round % 5; ++i) CHECK(!llamavid_stream_next(stream, pixels, NULL, -1));
        llamavid_stream_close(stream);
        pthread_join(pushing, NULL);
        CHECK(work.last == LLAMAVID_CLOSED);
        llamavid_stream_free(stream);
    }
}

static void *close_soon(void *stream) {
    const struct timespec pause = {0, 5 * 1000 * 1000};
    nanosleep(&pause, NULL);
    llamavid_stream_close(stream);
    return NULL;
}

static void closing_wakes_a_next_that_waits(void) {
    llamavid_stream *stream = opened(1, LLAMAVID_BLOCK);
    pthread_t closing;
    float pixels[VALUES];
    CHECK(!pthread_create(&closing, NULL, close_soon, stream));
    CHECK(llamavid_stream_next(stream, pixels, NULL, -1) == LLAMAVID_CLOSED);
    pthread_join(closing, NULL);
    llamavid_stream_free(stream);
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void a_wait_lasts_as_long_as_its_timeout(void) {
    llamavid_stream *stream = opened(1, LLAMAVID_BLOCK);
    float pixels[VALUES];
    const double start = seconds_now();
    CHECK(llamavid_stream_next(stream, pixels, NULL, 30) == LLAMAVID_TIMED_OUT);
    CHECK(seconds_now() - start >= 0.03);
    llamavid_stream_free(stream);
}

static void a_second_producer_is_refused_or_waits_its_turn(void) {
    llamavid_stream *stream = opened(4, LLAMAVID_DROP_OLDEST);
    producer one = {stream, FRAMES / 2, 0, LLAMAVID_OK}, other = one;
    pthread_t first, second;
    CHECK(!pthread_create(&first, NULL, push_frames, &one));
    CHECK(!pthread_create(&second, NULL, push_frames, &other));
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    const llamavid_stream_counters c = llamavid_stream_counters_of(stream);
    CHECK(c.pushed == c.kept + c.refused && c.kept == c.dropped + c.waiting);
    llamavid_stream_free(stream);
}

int main(void) {
    every_frame_arrives_whole_or_is_counted(LLAMAVID_BLOCK);
    every_frame_arrives_whole_or_is_counted(LLAMAVID_DROP_OLDEST);
    closing_wakes_a_push_that_waits();
    closing_wakes_a_next_that_waits();
    a_wait_lasts_as_long_as_its_timeout();
    a_second_producer_is_refused_or_waits_its_turn();
    return failures != 0;
}
