"""From a source's frames to batches of pixels: one thread reads and prepares, another encodes.

    with FrameStream(preprocessing, fps=1) as stream, stream.fed_by(source.frames()):
        for batch in stream.batches(8):
            encode(batch.pixels)                       # [n, 3, S, S], n from 1 to 8
        print(stream.counters)

Which frames are kept depends on their presentation times alone. Between the threads lies a bounded queue of
prepared frames, its memory taken at once; it is compiled where the compiled module is, and equal without.
Knows nothing about files, cameras or the model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt

from llamavid.config import Preprocessing
from llamavid.errors import SourceError, UsageError
from llamavid.runtime.implementation import native_or_none, simd_of
from llamavid.runtime.picture_queue import PictureQueue, Status
from llamavid.runtime.pixels import MAX_SIDE, PixelDtype, check_image_size, checked_constants, pad_to_square
from llamavid.runtime.video.frames import Frame, FrameTime, check_fps
from llamavid.runtime.yuv import Picture, Yuv420, rgb_from_yuv420

LONGEST_WAIT_MS = 2**31 - 1
PATIENCE_SECONDS = 5.0  # for a producer to come back from reading


class WhenFull(Enum):
    """What becomes of a frame that is to be kept while the queue is full."""

    BLOCK = "the producer waits"
    DROP_OLDEST = "the oldest waiting frame goes"


class Pushed(Enum):
    """What became of a frame."""

    KEPT = "it waits in the queue, or was taken"
    SAMPLED_OUT = "its time is not one to keep"
    TIMED_OUT = "the queue stayed full; the frame may be pushed again"
    CLOSED = "the consumer closed the stream"


@dataclass(frozen=True)
class StreamCounters:
    """What became of the frames so far. At every moment

    pushed == kept + sampled_out + refused + timed_out and kept == delivered + dropped + waiting.
    """

    pushed: int
    kept: int
    sampled_out: int
    refused: int
    timed_out: int
    dropped: int
    delivered: int
    waiting: int


@dataclass(frozen=True, eq=False)
class PixelBatch:
    """Consecutive kept frames, ready for the vision encoder."""

    pixels: npt.NDArray[np.floating]  # [n, 3, S, S]
    frames: tuple[FrameTime, ...]  # n


class FrameStream:
    """One thread pushes, one takes batches; any may close it or read its counters.

    notes: one-sentence remarks for the user, complete once a `fed_by` is left.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        fps: float | None = None,
        capacity: int = 8,
        when_full: WhenFull = WhenFull.BLOCK,
        dtype: PixelDtype = np.float32,
    ) -> None:
        """Takes all memory that it will need: `capacity` frames of pixels, and two more.

        Args:
            fps: of each 1/fps seconds since the first frame, the first frame is kept; None keeps all.
            capacity: frames that may wait.
            dtype: of the pixels, float32 or float16.

        Raises:
            UsageError: an argument is not of that form.
        """
        if fps is not None:
            check_fps(fps)
        if not 1 <= capacity < 2**31:
            raise UsageError(f"capacity is {capacity}", expected="1 frame or more")
        check_image_size(preprocessing.image_size)
        mean, std, self._dtype = checked_constants(preprocessing.mean, preprocessing.std, dtype)
        self.notes: list[str] = []
        self._preprocessing = preprocessing
        self._queue = _queue_class()(
            image_size=preprocessing.image_size,
            mean=mean,
            std=std,
            half=self._dtype == np.float16,
            capacity=capacity,
            fps=fps or 0.0,
            drop_oldest=when_full is WhenFull.DROP_OLDEST,
        )
        self._last_seconds = -math.inf
        self._ended = False
        self._failure: BaseException | None = None

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def counters(self) -> StreamCounters:
        return StreamCounters(*self._queue.counters())

    # The producer's thread.

    def push(self, frame: Frame, *, pad: bool = False, timeout_seconds: float | None = None) -> Pushed:
        """`push_picture` of a source's frame."""
        return self.push_picture(
            frame.picture, frame.index, frame.pts_seconds, pad=pad, timeout_seconds=timeout_seconds
        )

    def push_picture(
        self,
        picture: Picture,
        index: int,
        pts_seconds: float,
        *,
        pad: bool = False,
        timeout_seconds: float | None = None,
    ) -> Pushed:
        """Prepares a picture, if its time is one to keep, and puts it in the queue.

        Args:
            picture: uint8 [H, W, 3], red first; or planes, of which no picture in RGB is made.
            index: handed through.
            pad: put it on a square first, as pictures are where the model wants it.
            timeout_seconds: how long to wait for room under `WhenFull.BLOCK`; None waits for ever.

        Raises:
            SourceError: its time is no number or runs backwards; it is counted as refused.
            UsageError: it is no picture (refused), the stream was ended, or another thread is pushing.
        """
        timeout_ms = _milliseconds(timeout_seconds)
        if isinstance(picture, Yuv420) and pad:
            picture = rgb_from_yuv420(picture)
        if isinstance(picture, Yuv420):
            matrix, full_range = picture.matrix.value, picture.full_range
            status = self._queue.push_yuv420(
                picture.packed, matrix, full_range, index, pts_seconds, timeout_ms
            )
        else:
            rgb = _rgb(picture)
            if rgb is not None and pad:
                rgb = pad_to_square(rgb, mean=self._preprocessing.mean)
            status = self._queue.push(rgb, index, pts_seconds, timeout_ms)
        if status in (Status.OK, Status.SKIPPED):
            self._last_seconds = pts_seconds
            return Pushed.KEPT if status == Status.OK else Pushed.SAMPLED_OUT
        if status == Status.TIMED_OUT:
            return Pushed.TIMED_OUT
        if status == Status.CLOSED and not self._ended:
            return Pushed.CLOSED
        raise self._refusal(status, picture, index, pts_seconds)

    def end(self) -> None:
        """No frame will follow. What waits can still be taken."""
        self._ended = True
        self._queue.end()

    @contextmanager
    def fed_by(
        self,
        frames: Iterable[Frame],
        *,
        pad: bool = False,
        interrupt: Callable[[], None] = lambda: None,
    ) -> Iterator[FrameStream]:
        """Reads and pushes `frames` on a thread of its own, until they end or this is left.

        What reading raises, `batches` raises, after the frames before it. A frame whose time does not fit is
        refused, counted and noted. Leaving closes the stream and waits for the thread; where that is still
        reading, `interrupt` is called first. One that does not come back from reading is left alone after
        some seconds, with a note.
        """
        thread = threading.Thread(target=self._feed, args=(frames, pad), name="llamavid frames", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.close()
            if not self._ended:
                interrupt()
            thread.join(PATIENCE_SECONDS)
            if thread.is_alive():
                self.notes.append("The source did not come back from reading: its thread was left behind.")

    # The consumer's thread.

    def batches(self, size: int, *, wait_seconds: float | None = None) -> Iterator[PixelBatch]:
        """What waits, up to `size` frames at a time and at least one: a batch is not waited for to be full.

        Args:
            wait_seconds: how long to wait for a frame; None waits for ever. Ctrl-C ends any wait.

        Raises:
            SourceError: no frame came in time; calling again goes on.
            UsageError: an argument is not of that form, the stream was closed, or another thread is taking.
            Whatever reading the frames raised, see `fed_by`.
        """
        if size < 1:
            raise UsageError(f"size is {size}", expected="1 frame or more")
        return self._batches(size, wait_seconds, _milliseconds(wait_seconds))

    def close(self) -> None:
        """Wakes both sides: the stream gives and takes nothing any more."""
        self._queue.close()

    def _batches(self, size: int, wait_seconds: float | None, timeout_ms: int) -> Iterator[PixelBatch]:
        while True:
            status, batch = self._next_batch(size, timeout_ms)
            if batch is not None:
                yield batch
            elif status == Status.ENDED:
                if self._failure is not None:
                    raise self._failure
                return
            elif status == Status.TIMED_OUT:
                raise SourceError(
                    f"no frame came for {wait_seconds:g} s", next_step="Check the source, or wait longer."
                )
            elif status == Status.CLOSED:
                raise UsageError("the stream was closed", expected="an open one", next_step="Open another.")
            else:
                raise _two_threads("take frames")

    def _next_batch(self, size: int, timeout_ms: int) -> tuple[int, PixelBatch | None]:
        """The first frame is waited for; what waits with it comes along."""
        side = self._preprocessing.image_size
        pixels = np.empty((size, 3, side, side), self._dtype)
        frames: list[FrameTime] = []
        status = int(Status.OK)
        while len(frames) < size:
            status, index, pts_seconds = self._queue.next(pixels[len(frames)], 0 if frames else timeout_ms)
            if status != Status.OK:
                break
            frames.append(FrameTime(index, pts_seconds))
        return status, PixelBatch(pixels[: len(frames)], tuple(frames)) if frames else None

    def _feed(self, frames: Iterable[Frame], pad: bool) -> None:
        refused: list[str] = []
        try:
            for frame in frames:
                try:
                    if self.push(frame, pad=pad) is Pushed.CLOSED:
                        break
                except SourceError as refusal:
                    refused = refused or [str(refusal)]
        except BaseException as failure:  # for the consumer: `batches` raises it
            self._failure = failure
        finally:
            if isinstance(frames, Generator):  # closed where it ran
                frames.close()
            if refused:
                self.notes.append(f"Frames were refused, the first one because {refused[0]}")
            self.end()

    def _refusal(self, status: int, picture: object, index: int, pts_seconds: float) -> Exception:
        """The sentence for a frame that was counted as refused."""
        if status == Status.BAD_TIME:
            return SourceError(
                f"frame {index} is at {pts_seconds:g} s, after one at {self._last_seconds:g} s",
                expected="times that never run backwards",
            )
        if status == Status.CLOSED:
            return UsageError(
                "a frame was pushed after the end", expected="none", next_step="Open another stream."
            )
        if status == Status.BUSY:
            return _two_threads("push")
        if status == Status.NULL_POINTER:
            return _no_picture(picture)
        if status == Status.OUT_OF_MEMORY:
            return MemoryError(f"frame {index} could not be prepared")
        return UsageError(f"frame {index} was refused with status {status}")


def _queue_class() -> Callable[..., PictureQueue]:
    """The compiled queue, or the one in Python: they differ in speed alone."""
    native = native_or_none()
    return PictureQueue if native is None else partial(native.PictureQueue, simd=simd_of(native))


def _rgb(rgb: object) -> npt.NDArray[np.uint8] | None:
    """uint8 [H, W, 3] without gaps; None where it is no picture."""
    if not (isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3):
        return None
    return np.ascontiguousarray(rgb) if all(1 <= side <= MAX_SIDE for side in rgb.shape[:2]) else None


def _no_picture(rgb: object) -> UsageError:
    found = f"{rgb.dtype} {list(rgb.shape)}" if isinstance(rgb, np.ndarray) else f"a {type(rgb).__name__}"
    expected = f"a NumPy array, uint8 [H, W, 3] with H and W from 1 to {MAX_SIDE}"
    return UsageError(f"rgb is {found}", expected=expected, next_step="Decode pictures to RGB bytes.")


def _two_threads(act: str) -> UsageError:
    return UsageError(f"two threads {act} at the same time", expected="one that pushes and one that takes")


def _milliseconds(seconds: float | None) -> int:
    if seconds is None:
        return -1
    if not seconds >= 0:
        raise UsageError(f"a time to wait is {seconds}", expected="0 seconds or more, or None for ever")
    return math.ceil(min(seconds * 1000, LONGEST_WAIT_MS))
