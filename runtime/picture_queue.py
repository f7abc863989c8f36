"""A bounded queue of prepared frames between two threads, in Python: the truth that the compiled one equals.

Takes pictures with their times, gives pixels; `llamavid/runtime.h` has the rules. Knows nothing of where
pictures come from, nor of errors with sentences: calls return a `Status`. Used where the compiled module is
missing or LLAMAVID_PIXELS=numpy; `llamavid.runtime.stream` is what to use.
"""

from __future__ import annotations

import enum
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.runtime.pixels import pixels_from_rgb
from llamavid.runtime.yuv import Yuv420, YuvMatrix, pixels_from_yuv420

Prepare = Callable[[], npt.NDArray[Any]]  # gives the pixels of a picture

SLACK_SECONDS = 1e-6  # times come from ticks: a frame at 1 s may be at 0.9999999


class Status(enum.IntEnum):
    """What a call came to: the numbers of `llamavid/runtime.h`."""

    OK = 0
    NULL_POINTER = 1
    OUT_OF_MEMORY = 5
    SKIPPED = 20
    TIMED_OUT = 21
    ENDED = 22
    CLOSED = 23
    BAD_TIME = 24
    BUSY = 26


class PictureQueue:
    """One thread pushes, one takes; any may end, close or count."""

    def __init__(
        self,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        half: bool,
        capacity: int,
        fps: float,
        drop_oldest: bool,
    ) -> None:
        dtype = np.float16 if half else np.float32
        self._from_rgb = partial(pixels_from_rgb, image_size=image_size, mean=mean, std=std, dtype=dtype)
        self._from_yuv = partial(pixels_from_yuv420, image_size=image_size, mean=mean, std=std, dtype=dtype)
        self._capacity, self._fps, self._drop_oldest = capacity, fps, drop_oldest
        # Two slots more than the queue has places: one for either side to work in, outside the lock.
        self._slots = np.zeros((capacity + 2, 3, image_size, image_size), dtype)
        self._producers, self._free = capacity + 1, list(range(capacity + 1))
        self._queue: deque[tuple[int, int, float]] = deque()  # slot, index, pts_seconds

        self._lock = threading.Lock()  # of all but the producer's slot
        self._room, self._frames = threading.Condition(self._lock), threading.Condition(self._lock)
        self._pushing, self._taking = threading.Lock(), threading.Lock()
        self._started = self._ended = self._closed = False
        self._first_seconds = self._last_seconds = self._next_due = 0.0
        self._kept = self._sampled_out = self._refused = self._timed_out = self._dropped = self._delivered = 0

    def push(
        self, rgb: npt.NDArray[np.uint8] | None, index: int, pts_seconds: float, timeout_ms: int
    ) -> Status:
        """uint8 [H, W, 3] into the queue, if its time is one to keep. A negative timeout waits for ever."""
        pixels = None if rgb is None else lambda: self._from_rgb(rgb[None])[0]
        return self._push_alone(pixels, index, pts_seconds, timeout_ms)

    def push_yuv420(
        self,
        planes: Sequence[npt.NDArray[np.uint8]],
        matrix: int,
        full_range: bool,
        index: int,
        pts_seconds: float,
        timeout_ms: int,
    ) -> Status:
        """The same for the planes of a `Yuv420`."""
        picture = Yuv420(tuple(planes), YuvMatrix(matrix), full_range)
        return self._push_alone(lambda: self._from_yuv(picture), index, pts_seconds, timeout_ms)

    def _push_alone(self, pixels: Prepare | None, index: int, pts_seconds: float, timeout_ms: int) -> Status:
        if not self._pushing.acquire(blocking=False):
            with self._lock:
                return self._refuse(Status.BUSY)
        try:
            return self._push(pixels, index, pts_seconds, timeout_ms)
        finally:
            self._pushing.release()

    def next(self, pixels: npt.NDArray[np.floating], timeout_ms: int) -> tuple[Status, int, float]:
        """The oldest waiting frame into `pixels` [3, S, S]: status, index and pts_seconds."""
        if not self._taking.acquire(blocking=False):
            return Status.BUSY, 0, 0.0
        try:
            return self._next(pixels, timeout_ms)
        finally:
            self._taking.release()

    def end(self) -> None:
        """No picture will follow."""
        with self._lock:
            self._ended = True
            self._wake()

    def close(self) -> None:
        """Nothing is given or taken any more."""
        with self._lock:
            self._closed = True
            self._wake()

    def counters(self) -> tuple[int, int, int, int, int, int, int, int]:
        """pushed, kept, sampled_out, refused, timed_out, dropped, delivered, waiting."""
        with self._lock:
            pushed = self._kept + self._sampled_out + self._refused + self._timed_out
            so_far = (pushed, self._kept, self._sampled_out, self._refused, self._timed_out)
            return (*so_far, self._dropped, self._delivered, len(self._queue))

    def _push(self, pixels: Prepare | None, index: int, pts_seconds: float, timeout_ms: int) -> Status:
        with self._lock:
            if self._ended or self._closed:
                return self._refuse(Status.CLOSED)
            if pixels is None:
                return self._refuse(Status.NULL_POINTER)
            if not math.isfinite(pts_seconds) or (self._started and pts_seconds < self._last_seconds):
                return self._refuse(Status.BAD_TIME)
            if self._started and self._fps and self._periods(pts_seconds) < self._next_due:
                self._sampled_out += 1
                self._last_seconds = pts_seconds
                return Status.SKIPPED
        self._slots[self._producers] = pixels()
        with self._lock:
            if not _wait(self._room, self._may_go_on, timeout_ms):
                self._timed_out += 1
                return Status.TIMED_OUT
            if self._ended or self._closed:
                return self._refuse(Status.CLOSED)
            self._hand_over(index, pts_seconds)
            return Status.OK

    def _next(self, pixels: npt.NDArray[np.floating], timeout_ms: int) -> tuple[Status, int, float]:
        with self._lock:
            in_time = _wait(
                self._frames, lambda: bool(self._queue) or self._ended or self._closed, timeout_ms
            )
            if self._closed or not self._queue:
                ended = Status.ENDED if in_time else Status.TIMED_OUT
                return Status.CLOSED if self._closed else ended, 0, 0.0
            slot, index, pts_seconds = self._queue.popleft()
            self._delivered += 1
            self._room.notify()
        pixels[:] = self._slots[slot]
        with self._lock:
            self._free.append(slot)
        return Status.OK, index, pts_seconds

    # Within the lock.

    def _may_go_on(self) -> bool:
        room = self._drop_oldest or len(self._queue) < self._capacity
        return room or self._ended or self._closed

    def _refuse(self, status: Status) -> Status:
        self._refused += 1
        return status

    def _periods(self, pts_seconds: float) -> float:
        """How many 1/fps since the first frame."""
        return (pts_seconds - self._first_seconds + SLACK_SECONDS) * self._fps

    def _hand_over(self, index: int, pts_seconds: float) -> None:
        """The producer's slot goes into the queue, whose oldest frame makes room if it must."""
        if not self._started:
            self._started, self._first_seconds = True, pts_seconds
        self._last_seconds = pts_seconds
        self._next_due = float(np.floor(self._periods(pts_seconds))) + 1  # np: infinity stays what it is
        if len(self._queue) == self._capacity:
            self._free.append(self._queue.popleft()[0])
            self._dropped += 1
        self._queue.append((self._producers, index, pts_seconds))
        self._producers = self._free.pop()
        self._kept += 1
        self._frames.notify()

    def _wake(self) -> None:
        self._room.notify_all()
        self._frames.notify_all()


def _wait(changed: threading.Condition, ready: Callable[[], bool], timeout_ms: int) -> bool:
    return changed.wait_for(ready, None if timeout_ms < 0 else timeout_ms / 1000)
