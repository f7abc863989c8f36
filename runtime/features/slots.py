"""Numbered places of one frame each: the first in memory, the others in a file without a name.

Note [Where a frame lies] in `llamavid.runtime.features.memory`. Knows nothing of which frame lies where.
"""

from __future__ import annotations

import errno
import heapq
import os
import tempfile
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from llamavid.errors import DeviceError

Half = npt.NDArray[np.float16]


class FeatureSlots:
    """Numbered places of one frame each, by Note [Where a frame lies]."""

    def __init__(
        self, features: tuple[int, ...], content: tuple[int, ...], budget: int, spill: int, folder: str
    ) -> None:
        self.features_shape, self.content_shape = features, content
        self.frame_bytes = 2 * (int(np.prod(features)) + int(np.prod(content)))
        self._in_memory = budget // self.frame_bytes
        self._total = self._in_memory + spill // self.frame_bytes
        self._memory: dict[int, tuple[Half, Half]] = {}
        self._folder = folder
        self._file: BinaryIO | None = None
        self._free: list[int] = []  # a heap: memory before disk
        self._touched = 0  # slots that were ever given

    @property
    def full(self) -> bool:
        return not self._free and self._touched == self._total

    @property
    def resident_bytes(self) -> int:
        return len(self._memory) * self.frame_bytes

    @property
    def spilled_bytes(self) -> int:
        refused = sum(slot >= self._in_memory for slot in self._free)
        return (max(0, self._touched - self._in_memory) - refused) * self.frame_bytes

    def next_free(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._touched += 1
        return self._touched - 1

    def give_back(self, slot: int) -> None:
        heapq.heappush(self._free, slot)

    def buffers(self, frames: int) -> tuple[Half, Half]:
        """Room for some frames: features [n, R, C] and content [n, k, D]."""
        shapes = (self.features_shape, self.content_shape)
        features, content = (np.empty((frames, *shape), np.float16) for shape in shapes)
        return features, content

    def write(self, slot: int, features: Half, content: Half) -> None:
        """Raises `DeviceError` where the disk does not take it; the slot is free again then."""
        if slot < self._in_memory:
            if slot not in self._memory:
                self._memory[slot] = np.empty_like(features), np.empty_like(content)
            for place, values in zip(self._memory[slot], (features, content), strict=True):
                place[...] = values
            return
        try:
            file = self._at(slot)
            for values in (features, content):
                _write_all(file, np.ascontiguousarray(values).data.cast("B"))
        except OSError as error:
            self.give_back(slot)
            raise DeviceError(
                f"{self._folder} takes {mib(self.spilled_bytes)} of features and no more ({error.strerror})",
                next_step="Free some, or choose another folder to spill to.",
            ) from error

    def read(self, slot: int, features: Half, content: Half) -> None:
        """Copies a frame into `features` [R, C] and `content` [k, D]."""
        if slot < self._in_memory:
            features[...], content[...] = self._memory[slot]
            return
        file = self._at(slot)
        for place in (features, content):
            _read_all(file, place.data.cast("B"))

    def content(self, slot: int) -> Half:
        """A copy of a frame's content tokens. Only slots in memory are asked: who evicts does not spill."""
        return self._memory[slot][1].copy()

    def close(self) -> None:
        self._memory.clear()
        if self._file is not None:
            self._file.close()

    def _at(self, slot: int) -> BinaryIO:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        self._file.seek((slot - self._in_memory) * self.frame_bytes)
        return self._file


def disk_folder() -> str:
    chosen = "TMPDIR" in os.environ or not os.access("/var/tmp", os.W_OK)
    return tempfile.gettempdir() if chosen else "/var/tmp"


def mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data:  # a disk that becomes full takes a part first, and says so on the next
        data = data[file.write(data) :]


def _read_all(file: BinaryIO, place: memoryview) -> None:
    while place:
        read = file.readinto(place)  # type: ignore[attr-defined]
        if not read:
            raise OSError(errno.EIO, "the spill file is shorter than what was written")
        place = place[read:]
