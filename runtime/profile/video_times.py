"""Milliseconds a frame of decoding and preparing pixels, read as a session reads files.

Decoding goes on in a process of its own, and ahead of the reader. So it has a pass of its own: what is timed
is how long a reader who does nothing else waits for each next frame to be looked at, the frames passed
over before it included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamavid.config import Preprocessing
from llamavid.errors import SourceError
from llamavid.runtime.clip import frame_pixels
from llamavid.runtime.profile.document import VideoFigures
from llamavid.runtime.profile.figures import figure, rounds_within
from llamavid.runtime.video.frames import Frame, SourceKind
from llamavid.runtime.video.sources import open_source


@dataclass
class _Spent:
    """Milliseconds of one pass over the files."""

    opening: list[float] = field(default_factory=list)  # to the first frame
    decode: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)


def video_figures(
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    frames: int,
    fps: float,
    seconds: float,
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[VideoFigures, npt.NDArray[np.float32]]:
    """Figures of the first `frames` frames of the files, or all where they have fewer; and their pixels.

    Raises:
        SourceError: a file cannot be read, or none has a frame.
    """
    kept: list[npt.NDArray[np.float32]] = []
    sizes: set[tuple[int, int]] = set()

    def read() -> _Spent:
        spent = _Spent()
        for number, _, milliseconds, _ in _frames(paths, frames, fps):
            (spent.decode if number else spent.opening).append(milliseconds)
        kept.clear()
        for _, frame, _, kind in _frames(paths, frames, fps):
            start = time.perf_counter()
            kept.append(frame_pixels([frame], kind, preprocessing))
            spent.pixels.append((time.perf_counter() - start) * 1000)
            sizes.add(frame.size)
        return spent

    passes = rounds_within(read, seconds, at_most=10, on_round=on_round)
    if not kept:
        raise SourceError(f"{paths[0]} has no frame", expected="a video to be looked at")
    opening, decode, pixels = (
        [each for spent in passes for each in getattr(spent, name)]
        for name in ("opening", "decode", "pixels")
    )
    width, height = max(sizes)
    made = VideoFigures(
        ", ".join(path.name for path in paths),
        f"{width} x {height}",
        len(kept),
        frames,
        figure(opening),
        figure(decode or opening),  # a picture's one frame comes with its opening
        figure(pixels),
    )
    return made, np.concatenate(kept)


def _frames(paths: Sequence[Path], frames: int, fps: float) -> Iterator[tuple[int, Frame, float, SourceKind]]:
    """The first `frames` of all files: number in its file, frame, how long it was waited for, kind."""
    taken = 0
    for path in paths:
        start = time.perf_counter()
        with open_source(path, fps=fps) as source:
            for number, frame in enumerate(islice(source.frames(), frames - taken)):
                yield number, frame, (time.perf_counter() - start) * 1000, source.kind
                taken += 1
                start = time.perf_counter()
        if taken == frames:
            return
