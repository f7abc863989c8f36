"""Milliseconds a frame of decoding and preparing pixels, read as a session reads files.

Decoding goes on in a process of its own: what is timed is how long the reader waits for each next frame that
is to be looked at, the frames passed over before it included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.config import Preprocessing
from llamavid.errors import SourceError
from llamavid.runtime.clip import frame_pixels
from llamavid.runtime.profile.document import VideoFigures
from llamavid.runtime.profile.figures import figure, rounds_within
from llamavid.runtime.video.sources import open_source


@dataclass
class _Spent:
    """Milliseconds of one pass."""

    opening: list[float] = field(default_factory=list)
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
    sizes: list[tuple[int, int]] = []

    def read() -> _Spent:
        kept.clear()
        spent = _Spent()
        for path in paths:
            if len(kept) < frames:
                _read(path, preprocessing, frames, fps, kept, sizes, spent)
        return spent

    passes = rounds_within(read, seconds, at_most=10, on_round=on_round)
    if not kept:
        raise SourceError(f"{paths[0]} has no frame", expected="a video to be looked at")
    width, height = max(sizes)
    every: dict[str, list[float]] = {
        name: [ms for each in passes for ms in getattr(each, name)]
        for name in ("opening", "decode", "pixels")
    }
    made = VideoFigures(
        ", ".join(path.name for path in paths),
        f"{width} x {height}",
        len(kept),
        frames,
        figure(every["opening"]),
        figure(every["decode"] or every["opening"]),  # a picture's one frame comes with its opening
        figure(every["pixels"]),
    )
    return made, np.concatenate(kept)


def _read(
    path: Path,
    preprocessing: Preprocessing,
    frames: int,
    fps: float,
    kept: list[npt.NDArray[np.float32]],
    sizes: list[tuple[int, int]],
    spent: _Spent,
) -> None:
    """One file's frames into `kept`, up to `frames` in all; opening lasts until its first frame is there."""
    start = time.perf_counter()
    kind: Any = None
    with open_source(path, fps=fps) as source:
        kind = source.kind
        for number, frame in enumerate(source.frames()):
            (spent.decode if number else spent.opening).append((time.perf_counter() - start) * 1000)
            start = time.perf_counter()
            kept.append(frame_pixels([frame], kind, preprocessing))
            spent.pixels.append((time.perf_counter() - start) * 1000)
            sizes.append(frame.size)
            if len(kept) == frames:
                return
            start = time.perf_counter()
