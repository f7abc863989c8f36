"""Frames pushed by the caller: what comes in comes out, what is none is refused in a sentence and counted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from llamavid.errors import UsageError
from llamavid.runtime.live.push import PushSource
from llamavid.runtime.live.source import EventKind, SourceCounters, SourceEvent
from tests.clips import drawn_frame


def test_pushed_frames_come_out_in_order_with_their_times_and_are_copies() -> None:
    source = PushSource(is_live=False, capacity=2)
    buffer = np.empty((48, 64, 3), np.uint8)

    def push() -> None:
        for index in range(20):
            buffer[:] = drawn_frame(index)  # a camera's library uses its buffer again
            source.push(buffer, index / 10)
        source.end()

    pushing = threading.Thread(target=push)
    pushing.start()
    frames = list(source.frames())
    pushing.join()
    assert [(f.index, f.pts_seconds) for f in frames] == [(i, i / 10) for i in range(20)]
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb, drawn_frame(frame.index))
    assert source.counters == SourceCounters(frames=20)


def test_a_live_source_drops_the_oldest_frame_and_counts_it() -> None:
    events: list[SourceEvent] = []
    source = PushSource(capacity=2, on_event=events.append)
    for index in range(5):
        source.push(drawn_frame(index), float(index))
    source.end()
    assert [f.index for f in source.frames()] == [3, 4]
    assert source.counters == SourceCounters(frames=2, dropped=3)
    assert [event.kind for event in events] == [EventKind.DROPPED] * 3
    assert events[0].text == "The frame at 0 s was not fetched in time."


RGB = np.zeros((48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("frame", "pts_seconds", "problem"),
    [
        ([[[0, 0, 0]]], 1.0, "the frame is a list; expected a NumPy array, uint8"),
        (RGB.astype(np.float32), 1.0, "the frame is of float32; expected uint8"),
        (RGB.astype(np.int8), 1.0, "the frame is of int8; expected uint8"),
        (RGB[..., 0], 1.0, r"the frame has the shape \[48, 64\]; expected \[H, W, 3\]"),
        (RGB.transpose(2, 0, 1), 1.0, r"the frame has the shape \[3, 48, 64\]; expected \[H, W, 3\]"),
        (RGB[:0], 1.0, r"the frame has the shape \[0, 64, 3\]"),
        (np.zeros((48, 64, 4), np.uint8), 1.0, r"the frame has the shape \[48, 64, 4\]"),
        (RGB[..., ::-1], 1.0, r"the frame has the strides \[192, 3, -1\].*ascontiguousarray"),
        (RGB[::-1], 1.0, r"the frame has the strides \[-192, 3, 1\]; expected 3 bytes a pixel"),
        (RGB[:, ::2], 1.0, r"the frame has the strides \[192, 6, 1\]"),
        (np.broadcast_to(RGB[:1], RGB.shape), 1.0, r"the frame has the strides \[0, 3, 1\]"),
        (np.broadcast_to(np.uint8(0), (2, 20_000, 3)), 1.0, "the frame has the strides"),
        (np.zeros((1, 16_385, 3), np.uint8), 1.0, "'the frame' is too large"),
        (RGB, float("nan"), "pts_seconds is nan; expected a number of seconds"),
        (RGB, float("inf"), "pts_seconds is inf"),
        (RGB, "1", "pts_seconds is a str"),
        (RGB, None, "pts_seconds is a NoneType"),
    ],
)
def test_what_is_no_frame_is_refused_and_counted_and_the_next_one_comes(
    frame: object, pts_seconds: object, problem: str
) -> None:
    events: list[SourceEvent] = []
    source = PushSource(on_event=events.append)
    source.push(drawn_frame(0), 0.5)
    with pytest.raises(UsageError, match=problem):
        source.push(frame, pts_seconds)  # type: ignore[arg-type]
    source.push(drawn_frame(1), 2.0)
    source.end()
    assert [f.pts_seconds for f in source.frames()] == [0.5, 2.0]
    assert source.counters == SourceCounters(frames=2, refused=1)
    assert [event.kind for event in events] == [EventKind.REFUSED]


@pytest.mark.parametrize("late", [1.0, 0.999, -5.0])
def test_a_time_that_runs_backwards_is_refused_and_counted(late: float) -> None:
    events: list[SourceEvent] = []
    source = PushSource(on_event=events.append)
    source.push(RGB, 1.0)
    with pytest.raises(UsageError, match="after 1; expected a later time with each frame"):
        source.push(RGB, late)
    source.end()
    assert [f.pts_seconds for f in source.frames()] == [1.0]
    assert source.counters == SourceCounters(frames=1, backwards=1)
    assert [(event.kind, event.at_seconds) for event in events] == [(EventKind.BACKWARDS, 1.0)]


def test_rows_that_are_padded_are_fine() -> None:
    """So cameras give them."""
    padded = np.zeros((48, 80, 3), np.uint8)
    padded[:, :64] = drawn_frame(7)
    source = PushSource()
    source.push(padded[:, :64], 0)
    source.end()
    (frame,) = source.frames()
    np.testing.assert_array_equal(frame.rgb, drawn_frame(7))
    assert frame.rgb.flags.c_contiguous


def test_a_size_that_changes_is_the_frame_s_own_and_counted() -> None:
    source = PushSource()
    for index, size in enumerate([(64, 48), (64, 48), (32, 48), (64, 48)]):
        source.push(drawn_frame(index, size), index)
    source.end()
    assert [f.rgb.shape[1] for f in source.frames()] == [64, 64, 32, 64]
    assert source.counters.size_changes == 2


@pytest.mark.parametrize("waits", ["the reader", "the pusher"])
def test_closing_ends_whoever_waits(waits: str) -> None:
    source = PushSource(is_live=False, capacity=1)

    def push_two() -> None:
        source.push(RGB, 0.0)
        with pytest.raises(UsageError, match="closed"):
            source.push(RGB, 1.0)

    waiting = threading.Thread(target=(lambda: list(source.frames())) if waits == "the reader" else push_two)
    waiting.start()
    time.sleep(0.1)
    source.close()
    waiting.join(timeout=1)
    assert not waiting.is_alive()
    source.close()
    with pytest.raises(UsageError, match="after the end"):
        source.push(RGB, 3.0)


def test_frames_are_read_once() -> None:
    source = PushSource()
    source.end()
    assert list(source.frames()) == []
    with pytest.raises(UsageError, match="were read before this"):
        source.frames()
