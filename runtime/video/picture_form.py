"""A picture between two processes: its form in a few words, its planes as plain bytes one after another.

Both sides use this, so that it alone knows what lies where. What the words say is checked by who reads them.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamavid.runtime.yuv import Picture, Yuv420, YuvMatrix

SPARE = 4  # pictures whose memory is kept to be used again: two in a batch, two on their way


def form_of(picture: Picture) -> dict[str, Any]:
    """height, width; matrix: the name of a `YuvMatrix`, or None for RGB; full_range."""
    height, width = planes_of(picture)[0].shape[:2]
    colours: dict[str, Any] = {"matrix": None, "full_range": False}
    if isinstance(picture, Yuv420):
        colours = {"matrix": picture.matrix.name, "full_range": picture.full_range}
    return {"height": height, "width": width, **colours}


def planes_of(picture: Picture) -> tuple[NDArray[np.uint8], ...]:
    """In the order in which their bytes follow each other. Of RGB the picture is the only one."""
    return picture.planes if isinstance(picture, Yuv420) else (picture,)


class PictureMemory:
    """Memory for pictures that are read: that of a picture which nobody holds any more is used again.

    Fresh memory costs its page faults: 0.25 ms for a picture of 720p (benchmarks/NOTES.md).
    """

    def __init__(self) -> None:
        self._lent: list[tuple[bytearray, weakref.ref[NDArray[np.uint8]]]] = []

    def picture(
        self, height: int, width: int, matrix: str | None, full_range: bool
    ) -> tuple[Picture, NDArray[np.uint8]]:
        """A picture of that form, and its bytes, which are still to be written.

        Raises:
            ValueError: there is no such matrix.
        """
        if matrix is None:
            memory = self._bytes(height * width * 3)
            return memory.reshape(height, width, 3), memory
        if matrix not in YuvMatrix.__members__:
            raise ValueError(f"no matrix {matrix}")
        chroma = (-(-height // 2), -(-width // 2))
        shapes = ((height, width), chroma, chroma)
        ends = np.cumsum([rows * columns for rows, columns in shapes]).tolist()
        memory = self._bytes(ends[-1])
        parts = np.split(memory, ends[:-1])
        planes = tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        return Yuv420(planes, YuvMatrix[matrix], full_range), memory

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        """Every view of what is given keeps it alive, as NumPy's `base`: once it is gone, so are they all."""
        free = [memory for memory, lent in self._lent if lent() is None and len(memory) == count]
        memory = free[0] if free else bytearray(count)
        array = np.frombuffer(memory, np.uint8)
        others = [pair for pair in self._lent if pair[0] is not memory]
        self._lent = [*others, (memory, weakref.ref(array))][-SPARE:]
        return array
