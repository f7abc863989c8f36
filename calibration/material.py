"""What calibration watches: frames of some clips, and what is asked about each.

Frames come decoded and prepared: this room knows no decoder. Names are for people and reach no result, so
that the same frames and questions from another folder give the same scales.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Clip:
    """Some frames of a video, or a picture.

    name: for people.
    pixels: float32 [n, 3, S, S], one frame at least.
    questions: one at least.
    """

    name: str
    pixels: Array
    questions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Material:
    """All of it. At EVA-g's 224 pixels a frame takes 0.6 MB."""

    clips: tuple[Clip, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames of each clip."""
        return tuple(len(clip.pixels) for clip in self.clips)

    @property
    def frames(self) -> int:
        return sum(self.lengths)

    def pixels(self) -> Array:
        """float32 [T, 3, S, S] of all clips, one after the other."""
        return np.concatenate([clip.pixels for clip in self.clips])

    def asked(self) -> Iterator[tuple[slice, str]]:
        """Every question, with the frames it is about: a slice of `pixels()`."""
        first = 0
        for clip in self.clips:
            frames = slice(first, first + len(clip.pixels))
            yield from ((frames, question) for question in clip.questions)
            first = frames.stop

    @cached_property
    def digest(self) -> str:
        """sha256, hex, of all pixels and questions, in their order."""
        digest = hashlib.sha256()
        for clip in self.clips:
            pixels = np.ascontiguousarray(clip.pixels, "<f4")
            digest.update(f"{pixels.shape} {clip.questions!r}\n".encode())
            digest.update(pixels.data)
        return digest.hexdigest()
