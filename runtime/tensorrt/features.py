"""A watched video's features where they were made: on the GPU, and beyond a budget on the host.

Note [What stays on the GPU]
    Features come in blocks of some frames, which the context engine takes whole. Blocks stay on the GPU while
    they fit `resident_bytes`, so that a question moves nothing. From then on the newest block, when it is
    full, is brought to the host's `FeatureMemory`, rounded to float16 as everything there, and its place is
    used again; a question brings it back, block by block. Frames that show the same share a place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.elements import as_floats
from llamavid.runtime.features.memory import FeatureMemory
from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
from llamavid.runtime.tensorrt.cuda import Cuda, Stream

Array = npt.NDArray[Any]
HostPair = tuple[Array, Array]


@dataclass(frozen=True)
class FrameShapes:
    """Of one frame: features [R, C] and content tokens [k, D], in the frame engines' type."""

    features: tuple[int, int]
    content: tuple[int, int]
    dtype: DType

    @property
    def features_bytes(self) -> int:
        return self.features[0] * self.features[1] * self.dtype.numpy.itemsize

    @property
    def content_bytes(self) -> int:
        return self.content[0] * self.content[1] * self.dtype.numpy.itemsize


@dataclass
class Block:
    """Up to some number of frames on the GPU; `count` are there."""

    features: DeviceBuffer
    content: DeviceBuffer
    count: int = 0

    def close(self) -> None:
        self.features.close()
        self.content.close()


class DeviceFeatures:
    """By Note [What stays on the GPU]. `stream` writes and reads it; one thread at a time."""

    def __init__(
        self,
        cuda: Cuda,
        stream: Stream,
        shapes: FrameShapes,
        *,
        block_frames: int,
        resident_bytes: int,
        spill: Callable[[], FeatureMemory],
    ) -> None:
        """Nothing is allocated before it is needed. One block always is on the GPU."""
        self._cuda, self._stream, self._shapes, self._size = cuda, stream, shapes, block_frames
        block_bytes = block_frames * (shapes.features_bytes + shapes.content_bytes)
        self._most_blocks = max(1, resident_bytes // block_bytes)
        self._spill = spill
        self._spilled: FeatureMemory | None = None
        self._blocks: list[Block] = []  # the last is being filled
        self._places: dict[bytes, int] = {}  # by digest
        self._held = 0  # different frames
        self.order: list[int] = []  # of each frame its place among the different ones

    # Frames in.

    def holds(self, digest: bytes) -> bool:
        return digest in self._places

    def append_equal(self, digest: bytes) -> None:
        """One more frame that shows what a held one showed."""
        self.order.append(self._places[digest])

    def append(self, features: int, content: int, digests: Sequence[bytes | None]) -> None:
        """Frames that lie together at two addresses, one for each digest; copied on the stream.

        Raises:
            DeviceError: GPU, budget and disk are full.
            BundleError: a feature does not fit float16, where it has to go to the host.
        """
        done, sizes = 0, self._shapes
        while done < len(digests):
            block = self._room()
            taken = min(self._size - block.count, len(digests) - done)
            for into, source, size in (
                (block.features, features, sizes.features_bytes),
                (block.content, content, sizes.content_bytes),
            ):
                self._stream.copy(into.address + block.count * size, source + done * size, taken * size)
            block.count += taken
            done += taken
        for digest in digests:
            if digest is not None:
                self._places[digest] = self._held
            self.order.append(self._held)
            self._held += 1

    def clear(self) -> None:
        """Empty again; one block's memory is kept."""
        for block in self._blocks[1:]:
            block.close()
        del self._blocks[1:]
        for block in self._blocks:
            block.count = 0
        if self._spilled is not None:
            self._spilled.close()
        self._spilled = None
        self._places.clear()
        self.order.clear()
        self._held = 0

    # Frames out.

    def parts(self) -> Iterator[Block | HostPair]:
        """The different frames by their places: blocks, and what lies on the host, good until the next."""
        yield from self._blocks[:-1]
        if self._spilled is not None:
            yield from self._spilled.batches(self._size)
        yield from (block for block in self._blocks[-1:] if block.count)

    def batches(self, size: int) -> Iterator[HostPair]:
        """(features [b, R, C], content [b, k, D]), b up to `size`, in order, brought to the host."""
        last = {place: at for at, place in enumerate(self.order)}
        kept: dict[int, HostPair] = {}  # of frames that are shown again
        frames, made = self._frames(), 0
        for start in range(0, len(self.order), size):
            batch = []
            for at, place in enumerate(self.order[start : start + size], start):
                if place == made:
                    kept[place], made = next(frames), made + 1
                batch.append(kept[place] if last[place] > at else kept.pop(place))
            yield np.stack([pair[0] for pair in batch]), np.stack([pair[1] for pair in batch])

    def close(self) -> None:
        for block in self._blocks:
            block.close()
        self._blocks.clear()
        if self._spilled is not None:
            self._spilled.close()
        self._spilled = None

    # Places, on the GPU and on the host.

    def _room(self) -> Block:
        """A block with room for a frame."""
        if self._blocks and self._blocks[-1].count < self._size:
            return self._blocks[-1]
        if len(self._blocks) == self._most_blocks:
            self._bring_to_host(self._blocks[-1])
            self._blocks[-1].count = 0
            return self._blocks[-1]
        features, content = (
            DeviceBuffer(self._cuda, self._size * size, f"the features of {self._size} frames")
            for size in (self._shapes.features_bytes, self._shapes.content_bytes)
        )
        self._blocks.append(Block(features, content))
        return self._blocks[-1]

    def _bring_to_host(self, block: Block) -> None:
        if self._spilled is None:
            self._spilled = self._spill()
        features, content = self._downloaded(block)
        places = range(len(self._spilled), len(self._spilled) + block.count)
        self._spilled.append(features, content, frame_indices=places, pts_seconds=[0.0] * block.count)

    def _frames(self) -> Iterator[HostPair]:
        """One by one, by their places."""
        for part in self.parts():
            features, content = self._downloaded(part) if isinstance(part, Block) else part
            for at in range(len(features)):
                yield features[at].copy(), content[at].copy()

    def _downloaded(self, block: Block) -> HostPair:
        """A copy on the host, as floats."""
        found = []
        for buffer, shape in ((block.features, self._shapes.features), (block.content, self._shapes.content)):
            dtype = self._shapes.dtype
            size = block.count * shape[0] * shape[1] * dtype.numpy.itemsize
            staging = PinnedBuffer(self._cuda, size)
            self._stream.copy(staging.address, buffer.address, size)
            self._stream.synchronize()
            found.append(as_floats(staging.view(dtype.numpy, (block.count, *shape)).copy(), dtype))
        return found[0], found[1]
