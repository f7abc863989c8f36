/*
 * camera.c: from a camera, or from raw frames in a pipe, to the language model's input, in C.
 *
 *   camera /dev/video0 [--fps 1]
 *   ffmpeg -i clip.mp4 -f rawvideo -pix_fmt nv12 - | camera --stdin 1280x720 nv12 [--rate 25] [--fps 1]
 *
 * One thread captures and pushes; this one takes prepared pixels, has them encoded and prints a line
 * for each kept frame. --fps says how many frames of a second to keep, --rate how many the pipe has.
 *
 *   cc camera.c $(pkg-config --cflags --libs llamavid_runtime) -lpthread
 */
#define _DEFAULT_SOURCE /* mmap, and types of linux/videodev2.h */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <llamavid/runtime.h>

#ifdef __linux__
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

enum { IMAGE_SIZE = 224, PIXELS = 3 * IMAGE_SIZE * IMAGE_SIZE, WINDOW = 64, WIDTH = 8, MAX_SIDE = 16384 };

typedef struct capture {
    const char *device; /* NULL: frames come from stdin */
    llamavid_format format;
    int32_t width, height;
    double rate; /* of the pipe, frames a second */
    llamavid_stream *stream;
    int failed;
} capture;

static volatile sig_atomic_t interrupted = 0;

static void on_interrupt(int number) {
    (void)number;
    interrupted = 1;
}

/* ---- The producer's thread. ---- */

/* Where the planes of a frame lie whose rows are packed, `stride` bytes each in the first plane. */
static llamavid_picture picture_at(const capture *c, const uint8_t *samples, ptrdiff_t stride) {
    llamavid_picture picture = {0};
    picture.format = c->format;
    picture.height = c->height;
    picture.width = c->width;
    picture.planes[0] = samples;
    picture.row_stride_bytes[0] = stride;
    if (c->format == LLAMAVID_NV12) {
        picture.planes[1] = samples + stride * c->height;
        picture.row_stride_bytes[1] = stride + stride % 2;
    }
    return picture;
}

/* 0 when there is no point in going on. What is refused is said; the stream counts it. */
static int push(capture *c, const llamavid_picture *picture, int64_t index, double pts_seconds) {
    const llamavid_status status = llamavid_stream_push(c->stream, picture, index, pts_seconds, -1);
    if (status == LLAMAVID_CLOSED) return 0;
    if (status != LLAMAVID_OK && status != LLAMAVID_SKIPPED) {
        fprintf(stderr, "frame %lld is refused: %s\n", (long long)index, llamavid_status_text(status));
    }
    return 1;
}

static int capture_stdin(capture *c) {
    const size_t width = (size_t)c->width, height = (size_t)c->height;
    const size_t chroma = (width + 1) / 2 * 2 * ((height + 1) / 2);
    const size_t bytes = c->format == LLAMAVID_RGB24 ? width * height * 3 : width * height + chroma;
    uint8_t *samples = malloc(bytes);
    size_t read = 0;
    if (!samples) return fprintf(stderr, "no memory for a frame of %zu bytes\n", bytes), 0;
    for (int64_t index = 0; !interrupted && (read = fread(samples, 1, bytes, stdin)) == bytes; ++index) {
        const llamavid_picture picture =
            picture_at(c, samples, c->format == LLAMAVID_RGB24 ? c->width * 3 : c->width);
        if (!push(c, &picture, index, (double)index / c->rate)) break;
    }
    const int is_cut = read != 0 && read != bytes && !interrupted;
    if (is_cut) {
        fprintf(stderr, "the last frame is cut: %zu of %zu bytes. Are size and format right?\n", read, bytes);
    }
    free(samples);
    return !is_cut;
}

#ifdef __linux__
enum { BUFFERS = 4 };

typedef struct camera {
    int file;
    int is_yuyv;
    ptrdiff_t stride;
    uint8_t *planar; /* YUYV is rearranged to YUV420P here */
    void *buffers[BUFFERS];
    size_t lengths[BUFFERS];
} camera;

static int again(int file, unsigned long request, void *argument) {
    int result;
    do result = ioctl(file, request, argument);
    while (result < 0 && errno == EINTR && !interrupted);
    return result;
}

static int refuse(const char *device, const char *what) {
    fprintf(stderr, "%s: %s (%s)\n", device, what, strerror(errno));
    return 0;
}

/* NV12 or YUYV, whichever the camera agrees to. */
static int choose_format(capture *c, camera *cam) {
    static const uint32_t wanted[] = {V4L2_PIX_FMT_NV12, V4L2_PIX_FMT_YUYV};
    struct v4l2_format format;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; ++i) {
        memset(&format, 0, sizeof format);
        format.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
        if (again(cam->file, VIDIOC_G_FMT, &format)) return refuse(c->device, "is no camera");
        format.fmt.pix.pixelformat = wanted[i];
        format.fmt.pix.field = V4L2_FIELD_NONE;
        if (again(cam->file, VIDIOC_S_FMT, &format)) return refuse(c->device, "takes no format");
        if (format.fmt.pix.pixelformat != wanted[i]) continue;
        const struct v4l2_pix_format *got = &format.fmt.pix;
        if (!got->width || !got->height || got->width > MAX_SIDE || got->height > MAX_SIDE) break;
        c->width = (int32_t)got->width;
        c->height = (int32_t)got->height;
        cam->is_yuyv = wanted[i] == V4L2_PIX_FMT_YUYV;
        c->format = cam->is_yuyv ? LLAMAVID_YUV420P : LLAMAVID_NV12;
        cam->stride = (ptrdiff_t)got->bytesperline;
        return 1;
    }
    const uint32_t code = format.fmt.pix.pixelformat;
    fprintf(stderr,
            "%s gives '%c%c%c%c', %u x %u; expected NV12 or YUYV. Decode it first: ffmpeg -f v4l2 -i %s "
            "-f rawvideo -pix_fmt nv12 - | camera --stdin WIDTHxHEIGHT nv12\n",
            c->device, (int)(code & 255), (int)(code >> 8 & 255), (int)(code >> 16 & 255),
            (int)(code >> 24 & 255), format.fmt.pix.width, format.fmt.pix.height, c->device);
    return 0;
}

static int map_buffers(const capture *c, camera *cam) {
    struct v4l2_requestbuffers request = {0};
    request.count = BUFFERS;
    request.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    request.memory = V4L2_MEMORY_MMAP;
    if (again(cam->file, VIDIOC_REQBUFS, &request)) return refuse(c->device, "maps no buffers");
    for (uint32_t i = 0; i < request.count && i < BUFFERS; ++i) {
        struct v4l2_buffer buffer = {0};
        buffer.type = request.type;
        buffer.memory = request.memory;
        buffer.index = i;
        if (again(cam->file, VIDIOC_QUERYBUF, &buffer)) return refuse(c->device, "tells of no buffer");
        cam->lengths[i] = buffer.length;
        cam->buffers[i] = mmap(NULL, buffer.length, PROT_READ, MAP_SHARED, cam->file, buffer.m.offset);
        if (cam->buffers[i] == MAP_FAILED) {
            cam->buffers[i] = NULL;
            return refuse(c->device, "a buffer cannot be mapped");
        }
        if (again(cam->file, VIDIOC_QBUF, &buffer)) return refuse(c->device, "takes no buffer");
    }
    return 1;
}

/* Y0 U Y1 V in every row to three planes; of two rows the upper one's colour is taken. */
static llamavid_picture planar_from_yuyv(const capture *c, const camera *cam, const uint8_t *yuyv) {
    const ptrdiff_t half = (c->width + 1) / 2;
    uint8_t *y = cam->planar, *u = y + (ptrdiff_t)c->width * c->height, *v = u + half * ((c->height + 1) / 2);
    llamavid_picture picture = picture_at(c, y, c->width);
    for (int32_t row = 0; row < c->height; ++row) {
        const uint8_t *from = yuyv + row * cam->stride;
        for (int32_t x = 0; x < c->width; ++x) y[(ptrdiff_t)row * c->width + x] = from[2 * x];
        for (ptrdiff_t x = 0; row % 2 == 0 && x < half; ++x) {
            u[row / 2 * half + x] = from[4 * x + 1];
            v[row / 2 * half + x] = from[4 * x + 3];
        }
    }
    picture.planes[1] = u;
    picture.planes[2] = v;
    picture.row_stride_bytes[1] = picture.row_stride_bytes[2] = half;
    return picture;
}

static int push_captured(capture *c, camera *cam) {
    struct v4l2_buffer buffer = {0};
    double first = -1;
    for (int64_t index = 0; !interrupted; ++index) {
        struct pollfd ready = {cam->file, POLLIN, 0};
        const int came = poll(&ready, 1, 5000);
        if (interrupted) break;
        if (came <= 0) return refuse(c->device, came ? "cannot be waited for" : "no frame came for 5 s");
        memset(&buffer, 0, sizeof buffer);
        buffer.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
        buffer.memory = V4L2_MEMORY_MMAP;
        if (again(cam->file, VIDIOC_DQBUF, &buffer)) return refuse(c->device, "gives no frame");
        const double now = (double)buffer.timestamp.tv_sec + 1e-6 * (double)buffer.timestamp.tv_usec;
        if (first < 0) first = now;
        const uint8_t *samples = cam->buffers[buffer.index];
        const ptrdiff_t rows = cam->is_yuyv ? c->height : c->height + (c->height + 1) / 2;
        const int is_whole = buffer.bytesused >= (size_t)(cam->stride * rows);
        if (!is_whole || buffer.flags & V4L2_BUF_FLAG_ERROR) {
            fprintf(stderr, "frame %lld lost a part on its way: it is left out\n", (long long)index);
        } else {
            const llamavid_picture picture =
                cam->is_yuyv ? planar_from_yuyv(c, cam, samples) : picture_at(c, samples, cam->stride);
            if (!push(c, &picture, index, now - first)) break;
        }
        if (again(cam->file, VIDIOC_QBUF, &buffer)) return refuse(c->device, "takes no buffer back");
    }
    return 1;
}

static int capture_camera(capture *c) {
    camera cam = {0};
    int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    cam.file = open(c->device, O_RDWR | O_NONBLOCK);
    if (cam.file < 0) return refuse(c->device, "cannot be opened");
    int done = choose_format(c, &cam) && map_buffers(c, &cam);
    if (done) {
        const size_t half = (size_t)(c->width + 1) / 2 * ((size_t)(c->height + 1) / 2);
        cam.planar = malloc((size_t)c->width * (size_t)c->height + 2 * half);
        done = cam.planar && !again(cam.file, VIDIOC_STREAMON, &type) ? push_captured(c, &cam)
                                                                      : refuse(c->device, "does not start");
        again(cam.file, VIDIOC_STREAMOFF, &type);
    }
    for (int i = 0; i < BUFFERS; ++i)
        if (cam.buffers[i]) munmap(cam.buffers[i], cam.lengths[i]);
    free(cam.planar);
    close(cam.file);
    return done;
}
#else
static int capture_camera(capture *c) {
    return fprintf(stderr, "%s: cameras are read on Linux; use --stdin here\n", c->device), 0;
}
#endif

static void *produce(void *given) {
    capture *c = given;
    c->failed = !(c->device ? capture_camera(c) : capture_stdin(c));
    llamavid_stream_end(c->stream);
    return NULL;
}

/* ---- The consumer: this thread. ---- */

/*
 * YOUR ENGINE GOES HERE: vision encoder, context and content graphs, as `llamavid export` writes
 * them. This stand-in makes tokens of eight numbers out of the frame's mean colour.
 */
static float encode(const float *pixels, float *context, float *content) {
    double sum = 0;
    for (int i = 0; i < PIXELS; ++i) sum += pixels[i];
    for (int i = 0; i < WIDTH; ++i) context[i] = content[i] = (float)(sum / PIXELS);
    return (float)(sum / PIXELS);
}

/* The prompt's text around the newest frames, `frames` of them. */
static int assemble(const float *context, const float *content, size_t frames) {
    static const float table[3][WIDTH] = {{0.1f}, {0.2f}, {0.3f}};          /* yours: embeddings.npy */
    static const int64_t ids[] = {0, 1, LLAMAVID_SLOT, 2, 1};               /* yours: the tokenized prompt */
    llamavid_sequence_parts parts = {0};
    parts.ids = ids;
    parts.id_bytes = sizeof *ids;
    parts.id_count = sizeof ids / sizeof *ids;
    parts.table = table;
    parts.vocabulary = 3;
    parts.width = WIDTH;
    parts.context = context;
    parts.content = content;
    parts.frames = frames;
    parts.content_tokens = 1;
    size_t length = 0;
    llamavid_status status = llamavid_sequence_length(&parts, &length);
    float *sequence = malloc((length ? length : 1) * WIDTH * sizeof *sequence);
    if (!sequence) return 0;
    if (!status) status = llamavid_sequence(&parts, LLAMAVID_FLOAT32, sequence, length);
    if (!status) printf("sequence of %zu rows for the language model\n", length);
    else fprintf(stderr, "no sequence: %s\n", llamavid_status_text(status));
    free(sequence); /* yours: prefill with it first */
    return !status;
}

static int consume(llamavid_stream *stream) {
    static float pixels[PIXELS], context[WINDOW][WIDTH], content[WINDOW][WIDTH];
    llamavid_frame_info info;
    llamavid_status status;
    size_t frames = 0;
    while ((status = llamavid_stream_next(stream, pixels, &info, -1)) == LLAMAVID_OK) {
        if (frames == WINDOW) { /* the oldest frame leaves the window */
            memmove(context[0], context[1], (WINDOW - 1) * sizeof *context);
            memmove(content[0], content[1], (WINDOW - 1) * sizeof *content);
            --frames;
        }
        const float mean = encode(pixels, context[frames], content[frames]);
        ++frames;
        printf("frame %lld at %.3f s, mean %.6f\n", (long long)info.index, info.pts_seconds, mean);
        fflush(stdout);
    }
    return status == LLAMAVID_ENDED && frames > 0 && assemble(context[0], content[0], frames);
}

static int usage(void) {
    fputs("usage: camera DEVICE [--fps KEPT]\n"
          "       camera --stdin WIDTHxHEIGHT rgb24|nv12 [--rate FRAMES] [--fps KEPT]\n", stderr);
    return 2;
}

/* 0 unless the arguments are of one of the forms above. */
static int understood(int count, char **arguments, capture *c, double *fps) {
    int next = 2;
    if (count < 2) return 0;
    if (strcmp(arguments[1], "--stdin") != 0) {
        c->device = arguments[1];
    } else {
        if (count < 4 || sscanf(arguments[2], "%5dx%5d", &c->width, &c->height) != 2) return 0;
        if (c->width < 1 || c->height < 1 || c->width > MAX_SIDE || c->height > MAX_SIDE) return 0;
        const int is_nv12 = strcmp(arguments[3], "nv12") == 0;
        if (!is_nv12 && strcmp(arguments[3], "rgb24") != 0) return 0;
        c->format = is_nv12 ? LLAMAVID_NV12 : LLAMAVID_RGB24;
        next = 4;
    }
    for (; next + 1 < count; next += 2) {
        double *number = strcmp(arguments[next], "--fps") == 0 ? fps
                         : strcmp(arguments[next], "--rate") == 0 ? &c->rate : NULL;
        if (!number || sscanf(arguments[next + 1], "%lf", number) != 1 || !(*number > 0)) return 0;
    }
    return next == count;
}

int main(int count, char **arguments) {
    capture c = {NULL, LLAMAVID_NV12, 0, 0, 25, NULL, 0};
    llamavid_stream_options options = {IMAGE_SIZE, LLAMAVID_CLIP_MEAN, LLAMAVID_CLIP_STD,
                                       LLAMAVID_FLOAT32, 8, 1, LLAMAVID_BLOCK};
    if (!understood(count, arguments, &c, &options.fps)) return usage();
    if (c.device) options.when_full = LLAMAVID_DROP_OLDEST; /* a camera does not wait; a pipe does */

    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    sigaction(SIGINT, &action, NULL);

    const llamavid_status status = llamavid_stream_open(&options, &c.stream);
    if (status) return fprintf(stderr, "%s\n", llamavid_status_text(status)), 1;
    pthread_t producer;
    if (pthread_create(&producer, NULL, produce, &c)) return fputs("no thread\n", stderr), 1;
    const int done = consume(c.stream);
    llamavid_stream_close(c.stream); /* wakes the producer, should it wait */
    pthread_join(producer, NULL);

    const llamavid_stream_counters n = llamavid_stream_counters_of(c.stream);
    printf("pushed %llu, kept %llu, sampled out %llu, refused %llu, dropped %llu, delivered %llu\n",
           (unsigned long long)n.pushed, (unsigned long long)n.kept, (unsigned long long)n.sampled_out,
           (unsigned long long)n.refused, (unsigned long long)n.dropped, (unsigned long long)n.delivered);
    llamavid_stream_free(c.stream);
    return c.failed || !done;
}
