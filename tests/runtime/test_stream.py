"""A stream keeps frames by their times, holds a bounded number, and counts what became of every one."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llamavid.config import Preprocessing
from llamavid.errors import SourceError, UsageError
from llamavid.runtime import stream as stream_module
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD, pad_to_square, pixels_from_rgb
from llamavid.runtime.stream import FrameStream, PixelBatch, Pushed, StreamCounters, WhenFull
from llamavid.runtime.video.frames import Frame, FrameTime
from llamavid.runtime.yuv import Yuv420, YuvMatrix, pixels_from_yuv420, rgb_from_yuv420
from tests.runtime.test_pixels import IMPLEMENTATIONS

SMALL = Preprocessing(image_size=4, mean=CLIP_MEAN, std=CLIP_STD, pad_pictures=True)


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs with either queue."""
    monkeypatch.setenv("LLAMAVID_PIXELS", request.param)
    return str(request.param)


def frame(index: int, pts_seconds: float | None = None, *, height: int = 6, width: int = 9) -> Frame:
    """A picture of its own for each index."""
    rgb = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
    return Frame(index, float(index) if pts_seconds is None else pts_seconds, rgb)


def taken(stream: FrameStream, size: int = 100) -> list[PixelBatch]:
    stream.end()
    return list(stream.batches(size))


def indices(stream: FrameStream) -> list[int]:
    return [time.index for batch in taken(stream) for time in batch.frames]


def is_consistent(counters: StreamCounters) -> bool:
    c = counters
    inward = c.pushed == c.kept + c.sampled_out + c.refused + c.timed_out
    return inward and c.kept == c.delivered + c.dropped + c.waiting


# What comes out.


def test_pixels_and_times_are_those_of_the_frames_pushed() -> None:
    frames = [frame(7, 0.5), frame(8, 0.75, height=3, width=2)]
    with FrameStream(SMALL) as stream:
        assert [stream.push(one) for one in frames] == [Pushed.KEPT] * 2
        (batch,) = taken(stream)
    expected = [pixels_from_rgb(one.rgb[None], image_size=4)[0] for one in frames]
    np.testing.assert_array_equal(batch.pixels, expected)
    assert batch.frames == (FrameTime(7, 0.5), FrameTime(8, 0.75))


@pytest.mark.parametrize("pad", [False, True])
def test_planes_give_the_pixels_of_their_rgb(pad: bool) -> None:
    chroma = np.random.default_rng(1).integers(0, 256, (2, 3, 5), np.uint8)
    planes = (frame(0).rgb[..., 0], chroma[0], chroma[1])
    decoded = Frame(3, 0.5, Yuv420(planes, YuvMatrix.BT709, full_range=True))
    with FrameStream(SMALL) as stream:
        assert stream.push(decoded, pad=pad) is Pushed.KEPT
        assert stream.push(Frame(4, 0.75, decoded.rgb), pad=pad) is Pushed.KEPT
        (batch,) = taken(stream)
    np.testing.assert_array_equal(*batch.pixels)
    assert batch.frames == (FrameTime(3, 0.5), FrameTime(4, 0.75))


def test_a_picture_is_padded_to_a_square_where_the_model_wants_it() -> None:
    with FrameStream(SMALL) as stream:
        stream.push(frame(0), pad=True)
        (batch,) = taken(stream)
    expected = pixels_from_rgb(pad_to_square(frame(0).rgb)[None], image_size=4)
    np.testing.assert_array_equal(batch.pixels, expected)


def test_pixels_come_in_half_precision_when_the_graph_wants_it() -> None:
    with FrameStream(SMALL, dtype=np.float16) as stream:
        stream.push(frame(0))
        (batch,) = taken(stream)
    expected = pixels_from_rgb(frame(0).rgb[None], image_size=4).astype(np.float16)
    np.testing.assert_array_equal(batch.pixels, expected, strict=True)


@pytest.mark.parametrize("paired", [False, True])
def test_planes_are_taken_as_a_decoder_gives_them(paired: bool) -> None:
    random = np.random.default_rng(0)
    luma, u, v = (random.integers(0, 256, size, np.uint8) for size in ((7, 9), (4, 5), (4, 5)))
    picture = Yuv420((luma, np.stack([u, v], axis=2)) if paired else (luma, u, v))
    with FrameStream(SMALL) as stream:
        assert stream.push_picture(picture, 3, 0.5) is Pushed.KEPT
        stream.push_picture(picture, 4, 1.5, pad=True)
        (batch,) = taken(stream)
    np.testing.assert_array_equal(batch.pixels[0], pixels_from_yuv420(picture, image_size=4))
    square = pad_to_square(rgb_from_yuv420(picture))
    np.testing.assert_array_equal(batch.pixels[1], pixels_from_rgb(square[None], image_size=4)[0])
    assert batch.frames == (FrameTime(3, 0.5), FrameTime(4, 1.5))


def test_a_picture_that_is_a_view_is_taken_as_it_looks() -> None:
    mirrored = Frame(0, 0.0, frame(0).rgb[:, ::-1])
    with FrameStream(SMALL) as stream:
        stream.push(mirrored)
        (batch,) = taken(stream)
    np.testing.assert_array_equal(batch.pixels, pixels_from_rgb(mirrored.rgb[None].copy(), image_size=4))


def test_a_batch_is_what_waits_and_never_waits_to_be_full() -> None:
    with FrameStream(SMALL) as stream:
        for index in range(5):
            stream.push(frame(index))
        batches = stream.batches(3)
        assert [len(next(batches).frames), len(next(batches).frames)] == [3, 2]
        stream.push(frame(5))
        assert len(next(batches).frames) == 1


# Which frames are kept.


def test_of_each_period_the_first_frame_is_kept() -> None:
    with FrameStream(SMALL, fps=2) as stream:
        pushed = [stream.push(frame(index, 0.1 + index / 25)) for index in range(50)]
        assert [index for index, what in enumerate(pushed) if what is Pushed.KEPT] == [0, 13, 25, 38]
        assert stream.counters.sampled_out == 46


def test_after_a_gap_one_frame_is_kept_and_not_one_for_each_period_missed() -> None:
    with FrameStream(SMALL, fps=1) as stream:
        for pts_seconds in (0.0, 60.5, 60.9, 61.0, 61.1):
            stream.push(frame(int(pts_seconds * 10), pts_seconds))
        assert indices(stream) == [0, 605, 610]


def test_a_tick_before_its_period_is_at_its_beginning() -> None:
    with FrameStream(SMALL, fps=30) as stream:
        for index in range(6):
            stream.push(frame(index, round(index / 30 - 4e-7, 7)))
        assert indices(stream) == [0, 1, 2, 3, 4, 5]


# Too many, too late, wrong.


def test_the_oldest_frame_makes_room_and_is_counted() -> None:
    with FrameStream(SMALL, capacity=2, when_full=WhenFull.DROP_OLDEST) as stream:
        for index in range(5):
            assert stream.push(frame(index)) is Pushed.KEPT
        assert (stream.counters.dropped, stream.counters.waiting) == (3, 2)
        assert indices(stream) == [3, 4]


def test_a_full_queue_makes_a_push_wait_as_long_as_it_may() -> None:
    with FrameStream(SMALL, capacity=1) as stream:
        stream.push(frame(0))
        start = time.monotonic()
        assert stream.push(frame(1), timeout_seconds=0.05) is Pushed.TIMED_OUT
        assert time.monotonic() - start >= 0.05
        assert len(next(stream.batches(1)).frames) == 1
        assert stream.push(frame(1)) is Pushed.KEPT
        assert stream.counters == StreamCounters(3, 2, 0, 0, 1, 0, 1, 1)


@pytest.mark.parametrize("pts_seconds", [math.nan, math.inf, -math.inf, 0.9])
def test_a_time_that_does_not_follow_is_refused_counted_and_named(pts_seconds: float) -> None:
    with FrameStream(SMALL) as stream:
        stream.push(frame(0, 1.0))
        with pytest.raises(SourceError, match=rf"frame 1 is at {pts_seconds:g} s, after one at 1 s"):
            stream.push(frame(1, pts_seconds))
        assert stream.counters.refused == 1
        assert stream.push(frame(2, 1.0)) is Pushed.KEPT


@pytest.mark.parametrize(
    "rgb", [None, np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused_counted_and_named(rgb: Any) -> None:
    with FrameStream(SMALL) as stream:
        with pytest.raises(UsageError, match=r"rgb is .*uint8 \[H, W, 3\]"):
            stream.push(Frame(0, 0.0, rgb))
        assert (stream.counters.pushed, stream.counters.refused) == (1, 1)


def test_a_closed_stream_takes_and_gives_nothing() -> None:
    stream = FrameStream(SMALL)
    stream.push(frame(0))
    stream.close()
    assert stream.push(frame(1)) is Pushed.CLOSED
    with pytest.raises(UsageError, match="was closed"):
        next(stream.batches(1))
    assert is_consistent(stream.counters)


def test_a_push_after_the_end_is_a_mistake() -> None:
    with FrameStream(SMALL) as stream:
        stream.end()
        with pytest.raises(UsageError, match="after the end"):
            stream.push(frame(0))


def test_a_frame_that_does_not_come_in_time_is_said_and_can_be_waited_for_again() -> None:
    with FrameStream(SMALL) as stream:
        with pytest.raises(SourceError, match=r"no frame came for 0\.02 s"):
            next(stream.batches(1, wait_seconds=0.02))
        stream.push(frame(0))
        assert len(next(stream.batches(1, wait_seconds=0.02)).frames) == 1


@pytest.mark.parametrize(
    "wrong", [{"fps": 0}, {"fps": math.nan}, {"capacity": 0}, {"dtype": np.float64}, {"fps": -1}]
)
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        FrameStream(SMALL, **wrong)


def test_constants_that_no_frame_could_be_prepared_with_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="std"):
        FrameStream(Preprocessing(4, CLIP_MEAN, (0.0, 1.0, 1.0), False))


def test_wrong_waits_and_sizes_are_named() -> None:
    with FrameStream(SMALL) as stream:
        with pytest.raises(UsageError, match="size is 0"):
            stream.batches(0)
        with pytest.raises(UsageError, match="a time to wait is -1"):
            stream.batches(1, wait_seconds=-1)
        with pytest.raises(UsageError, match="a time to wait is nan"):
            stream.push(frame(0), timeout_seconds=math.nan)


# Two threads.


def test_every_frame_of_a_source_arrives_in_order_through_a_small_queue() -> None:
    with FrameStream(SMALL, capacity=2) as stream, stream.fed_by(frame(i) for i in range(200)):
        seen = [time.index for batch in stream.batches(3) for time in batch.frames]
    assert seen == list(range(200))
    assert stream.counters == StreamCounters(200, 200, 0, 0, 0, 0, 200, 0)
    assert stream.notes == []


def test_what_reading_raises_comes_after_the_frames_before_it() -> None:
    def damaged() -> Iterator[Frame]:
        yield from (frame(index) for index in range(3))
        raise SourceError("it broke")

    seen: list[int] = []

    def watch(stream: FrameStream) -> None:
        for batch in stream.batches(1):
            seen.extend(time.index for time in batch.frames)

    with FrameStream(SMALL) as stream, stream.fed_by(damaged()), pytest.raises(SourceError, match="it broke"):
        watch(stream)
    assert seen == [0, 1, 2]


def test_leaving_early_ends_a_producer_that_waits_for_room_and_closes_its_frames() -> None:
    closed_on: list[str] = []

    def endless() -> Iterator[Frame]:
        try:
            index = 0
            while True:
                yield frame(index)
                index += 1
        finally:
            closed_on.append(threading.current_thread().name)

    with FrameStream(SMALL, capacity=1) as stream, stream.fed_by(endless()):
        next(stream.batches(1))
    assert closed_on == ["llamavid frames"]
    assert "llamavid frames" not in [thread.name for thread in threading.enumerate()]
    assert is_consistent(stream.counters)


def test_a_source_that_never_comes_back_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PATIENCE_SECONDS", 0.05)
    come_back = threading.Event()

    def stuck() -> Iterator[Frame]:
        yield frame(0)
        come_back.wait()

    with FrameStream(SMALL) as stream, stream.fed_by(stuck()):
        next(stream.batches(1))
    assert stream.notes == ["The source did not come back from reading: its thread was left behind."]
    come_back.set()


def test_a_source_that_can_be_interrupted_is_when_the_consumer_leaves() -> None:
    come_back = threading.Event()

    def stuck() -> Iterator[Frame]:
        yield frame(0)
        come_back.wait()

    with FrameStream(SMALL) as stream, stream.fed_by(stuck(), interrupt=come_back.set):
        next(stream.batches(1))
    assert stream.notes == []  # none is left behind


def test_frames_whose_times_run_backwards_are_passed_over_counted_and_noted() -> None:
    frames = [frame(0, 0.0), frame(1, 2.0), frame(2, 1.0), frame(3, 1.5), frame(4, 3.0)]
    with FrameStream(SMALL) as stream, stream.fed_by(frames):
        seen = [time.index for batch in stream.batches(8) for time in batch.frames]
    assert seen == [0, 1, 4]
    assert stream.counters.refused == 2
    (note,) = stream.notes
    assert note.startswith("Frames were refused, the first one because frame 2 is at 1 s, after one at 2 s")


def test_a_second_thread_in_a_call_is_refused() -> None:
    refused: list[str] = []

    def push(stream: FrameStream, timeout_seconds: float | None) -> None:
        try:
            stream.push(frame(1), timeout_seconds=timeout_seconds)
        except UsageError as error:
            refused.append(str(error))

    with FrameStream(SMALL, capacity=1) as stream:
        stream.push(frame(0))
        waiting = threading.Thread(target=push, args=(stream, None))
        waiting.start()
        deadline = time.monotonic() + 10
        while not refused and time.monotonic() < deadline:
            push(stream, 0)
        stream.close()
        waiting.join()
    assert refused[0].startswith("two threads push at the same time")


def test_ctrl_c_ends_a_wait_for_a_frame() -> None:
    code = (
        "from tests.runtime.test_stream import SMALL, FrameStream\n"
        "with FrameStream(SMALL) as stream:\n"
        "    batches = stream.batches(1)\n"
        "    print('waiting', flush=True)\n"
        "    next(batches)\n"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
