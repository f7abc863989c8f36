"""A video as questions see it: features and content tokens of its frames, in order, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamavid.feature_file import release_pages
from llamavid.runtime.video.frames import FrameTime

Array = npt.NDArray[np.floating]


class FrameFeatures(Protocol):
    """T frames of features [R, C], R = 1+N or N rows, and content tokens [n, D], wherever they lie."""

    def batches(self, size: int) -> Iterator[tuple[Array, Array]]:
        """(features [b, R, C], content [b, n, D]), b up to `size`; each pair is good until the next."""
        ...

    def close(self) -> None:
        """Frees what they take."""
        ...


@dataclass(frozen=True)
class ArrayFeatures:
    """Features that are there already: in memory, or mapped from a file."""

    features: Array  # [T, R, C]
    content: Array  # [T, n, D]

    def batches(self, size: int) -> Iterator[tuple[Array, Array]]:
        for start, features in zip(
            range(0, len(self.features), size), slices(self.features, size), strict=True
        ):
            yield features, self.content[start : start + size]

    def close(self) -> None:
        pass


def slices(features: Array, size: int) -> Iterator[Array]:
    """`features` in pieces of up to `size` frames. A mapped file's do not stay resident."""
    for start in range(0, len(features), size):
        yield features[start : start + size]
        release_pages(features)


@dataclass(frozen=True)
class Watched:
    """A watched video. `notes` are what the user should know of the file."""

    frames: tuple[FrameTime, ...]
    held: FrameFeatures
    notes: tuple[str, ...] = ()

    def features(self) -> Array:
        """All of them at once, [T, R, C]: for short videos."""
        return np.concatenate([features.copy() for features, _ in self.held.batches(32)])
