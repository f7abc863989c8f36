"""Frames pushed by the caller: a camera of one's own library, a robot's bus, a simulation."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from numbers import Real
from types import TracebackType

import numpy as np

from llamavid.errors import SourceError, UsageError
from llamavid.runtime.live.source import EventKind, OnEvent, SourceCounters, SourceEvent, ignore, read_before
from llamavid.runtime.video.frames import Frame, SourceKind, check_size


class PushSource:
    """A source that the caller feeds: one thread pushes, another reads `frames()`.

        source = PushSource()
        source.push(rgb, pts_seconds)       # in the camera's callback
        source.end()                        # no more: frames() ends after those that wait

    Up to `capacity` frames wait to be fetched. When as many do, a live source drops the oldest of them, which
    is counted; one that is not live lets `push` wait.
    """

    kind = SourceKind.VIDEO

    def __init__(
        self,
        *,
        is_live: bool = True,
        capacity: int = 4,
        name: str = "pushed frames",
        on_event: OnEvent = ignore,
    ) -> None:
        if capacity < 1:
            raise UsageError(f"capacity is {capacity}", expected="at least 1")
        self.name, self.is_live, self.counters = name, is_live, SourceCounters()
        self._capacity, self._on_event = capacity, on_event
        self._waiting: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._pushed, self._latest = 0, -math.inf
        self._size: tuple[int, int] | None = None
        self._ended = self._closed = self._was_read = False

    def push(self, rgb: np.ndarray, pts_seconds: float) -> None:
        """Hands one frame over; it is copied, so that the caller may use its array again.

        rgb: uint8 [H, W, 3], upright; its rows may be padded.
        pts_seconds: later than the frame before.

        Raises:
            UsageError: the frame or its time is none, or the source has ended. It is counted, and the frames
                before and after are as if it had not come.
        """
        with self._changed:
            if self._ended or self._closed:
                raise UsageError(f"{self.name}: a frame after the end", next_step="Make a new PushSource.")
        try:
            pixels = self._checked_pixels(rgb)
            pts_seconds = self._checked_time(pts_seconds)
        except UsageError as error:
            self._tell(EventKind.REFUSED, f"A pushed frame was refused: {error}.")
            raise
        if pts_seconds <= self._latest:
            self.counters.backwards += 1
            problem = f"pts_seconds is {pts_seconds:g} after {self._latest:g}"
            self._tell(EventKind.BACKWARDS, f"A pushed frame was refused: {problem}.")
            raise UsageError(
                problem, expected="a later time with each frame", next_step="Leave the frame out."
            )
        self._tell_size(pixels.shape[1], pixels.shape[0])
        self._hand_over(Frame(self._pushed, pts_seconds, pixels.copy()))
        self._pushed, self._latest = self._pushed + 1, pts_seconds

    def end(self) -> None:
        """No more frames will come; those that wait can still be fetched."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def frames(self) -> Iterator[Frame]:
        with self._changed:
            if self._was_read:
                raise read_before(self.name)
            self._was_read = True
        return self._fetched()

    def _fetched(self) -> Iterator[Frame]:
        while (frame := self._next()) is not None:
            self.counters.frames += 1
            yield frame

    def close(self) -> None:
        """From any thread: `frames()` ends at once, and a `push` that waits."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def __enter__(self) -> PushSource:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _next(self) -> Frame | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            if not self._waiting or self._closed:
                return None
            self._changed.notify_all()
            return self._waiting.popleft()

    def _hand_over(self, frame: Frame) -> None:
        dropped = None
        with self._changed:
            if not self.is_live:
                self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._closed)
            if self._closed:
                raise UsageError(f"{self.name}: closed while a frame was handed over")
            if len(self._waiting) == self._capacity:
                dropped = self._waiting.popleft()
                self.counters.dropped += 1
            self._waiting.append(frame)
            self._changed.notify_all()
        if dropped is not None:
            self._tell(EventKind.DROPPED, f"The frame at {dropped.pts_seconds:g} s was not fetched in time.")

    def _checked_pixels(self, rgb: np.ndarray) -> np.ndarray:
        if not isinstance(rgb, np.ndarray):
            raise self._refused(f"the frame is a {type(rgb).__name__}", "a NumPy array, uint8 [H, W, 3]")
        if rgb.dtype != np.uint8:
            next_step = "Scale it to 0 ... 255 and convert it with .astype(numpy.uint8)."
            raise self._refused(f"the frame is of {rgb.dtype}", "uint8", next_step)
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise self._refused(f"the frame has the shape {list(rgb.shape)}", "[H, W, 3]")
        height, width, _ = rgb.shape
        row, column, sample = rgb.strides
        if sample != 1 or (column != 3 and width > 1) or (row < 3 * width and height > 1):
            given = f"the frame has the strides {list(rgb.strides)}"
            next_step = "Pass numpy.ascontiguousarray(frame)."
            raise self._refused(given, f"3 bytes a pixel, rows of {3 * width} bytes or more", next_step)
        try:
            check_size("the frame", width, height)
        except SourceError as error:
            raise self._refused(error.given, error.expected, error.next_step) from error
        return rgb

    def _checked_time(self, pts_seconds: float) -> float:
        if isinstance(pts_seconds, bool) or not isinstance(pts_seconds, Real):
            raise self._refused(f"pts_seconds is a {type(pts_seconds).__name__}", "a number of seconds")
        if not math.isfinite(pts_seconds):
            raise self._refused(f"pts_seconds is {pts_seconds}", "a number of seconds")
        return float(pts_seconds)

    def _refused(self, given: str, expected: str, next_step: str = "") -> UsageError:
        self.counters.refused += 1
        return UsageError(given, expected=expected, next_step=next_step)

    def _tell_size(self, width: int, height: int) -> None:
        before, self._size = self._size, (width, height)
        if before not in (None, self._size):
            self.counters.size_changes += 1
            text = "Frames are {} x {} pixels now, and were {} x {}.".format(*self._size, *before)
            self._tell(EventKind.SIZE, text)

    def _tell(self, kind: EventKind, text: str) -> None:
        self._on_event(SourceEvent(kind, text, max(self._latest, 0.0)))
