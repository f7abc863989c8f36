"""A frame, and the open file it comes from: what pictures and videos have in common.

A frame is upright and always carries its time. Sizes are limited here, before pixels are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llamavid.errors import SourceError, UsageError
from llamavid.runtime.yuv import Picture, Yuv420, rgb_of

MAX_SIDE = 16384  # twice the width of 8K video
MAX_PIXELS = 2**28 // 3  # 256 MiB of RGB; Pillow warns from here on

TURNED = "It is stored turned or mirrored: frames are put upright, as a player shows them."


class SourceKind(Enum):
    PICTURE = "picture"
    VIDEO = "video"


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame.

    index: position in the file, in display order, from 0; of a live source, among the kept frames.
    pts_seconds: presentation time, seconds after the stream's start.
    picture: upright; RGB, uint8 [H, W, 3], or the planes that were decoded, where the same RGB can be made of
        them (`llamavid.runtime.video.planes`). H and W may change within a file.
    """

    index: int
    pts_seconds: float
    picture: Picture

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = (self.picture.planes[0] if isinstance(self.picture, Yuv420) else self.picture).shape[
            :2
        ]
        return width, height

    @cached_property
    def rgb(self) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3]. Made when it is first asked for: `picture` is enough for pixels."""
        return rgb_of(self.picture)


@dataclass(frozen=True)
class FrameTime:
    """Which frame, and when it is shown."""

    index: int
    pts_seconds: float


@dataclass
class Source:
    """An open file; close it, by `with` or `close`. One thread at a time, but for `interrupt`.

    average_fps: frames a second in the file or folder; 0.0 for a picture.
    step: every step-th frame is kept.
    expected_frames: how many will be kept, as far as the file's header tells; None when it does not.
    notes: one-sentence remarks for the user. Reading frames adds to them.
    """

    path: str
    kind: SourceKind
    average_fps: float
    step: int
    expected_frames: int | None
    notes: list[str]
    _unread: Iterator[Frame] | None = field(repr=False)
    _opened: ExitStack = field(default_factory=ExitStack, repr=False)
    _interrupt: Callable[[], None] = field(default=lambda: None, repr=False)
    _closed: bool = field(default=False, repr=False)

    def frames(self) -> Iterator[Frame]:
        """The kept frames, once.

        Raises:
            SourceError: the file turns out to be damaged beyond what is passed over with a note.
            UsageError: the frames were read before, or the source is closed.
        """
        unread, self._unread = self._unread, None
        if unread is not None:
            yield from unread
        if unread is None or self._closed:  # closed under the reader: not to be taken for the end
            raise UsageError(
                f"the frames of {self.path!r} were {'closed' if self._closed else 'read'} before this",
                expected="one pass over an open source",
                next_step="Open it again.",
            )

    def close(self) -> None:
        self._closed = True
        self._opened.close()

    def interrupt(self) -> None:
        """From any thread: reading ends with an error, at once where another process decodes."""
        self._closed = True
        self._interrupt()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_fps(fps: float) -> None:
    if not (fps > 0 and math.isfinite(fps)):
        raise UsageError(f"fps is {fps}", expected="a number above 0", next_step="Try 1.")


def check_size(name: str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise too_large(name, f"{width} x {height} pixels")


def too_large(name: str, size: str) -> SourceError:
    limit = f"at most {MAX_SIDE} a side and {MAX_PIXELS} pixels in all"
    return SourceError(f"{name!r} is too large ({size})", expected=limit, next_step="Scale it down first.")


def unreadable(name: str, problem: str, *, next_step: str = "Check the path and the file.") -> SourceError:
    expected = "a local video or picture file that plays"
    return SourceError(f"{name!r} {problem}", expected=expected, next_step=next_step)
