"""Keys and values of one sequence on the GPU: one block, and the captured step that decodes over it.

Note [The cache's block]
    All layers' keys and values lie in one block, [layers x 2][kv_heads][capacity][head_dim], each tensor at
    an aligned place. It begins as zeros: masked keys weigh nothing, but nothing times what fresh memory holds
    may be no number. An engine of the static lowering is given the same address for past and present and
    writes its rows there. One of the primitive lowering gives the new rows alone, in a block of the same
    order, and one strided copy puts them into all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamavid.contract import GraphContract, TensorSpec
from llamavid.runtime.tensorrt.buffers import DeviceBuffer, aligned
from llamavid.runtime.tensorrt.cuda import Cuda, Graph, Stream
from llamavid.runtime.tensorrt.engine import Context


@dataclass(frozen=True)
class CacheLayout:
    """Where a token's rows lie; Note [The cache's block]. Sizes in bytes."""

    names: tuple[str, ...]  # past.0.key, past.0.value, past.1.key ...
    heads: int
    row: int  # of one head

    @classmethod
    def of(cls, contract: GraphContract) -> CacheLayout:
        past: Sequence[TensorSpec] = [spec for spec in contract.inputs if spec.name.startswith("past.")]
        _, heads, _, width = past[0].dims
        return cls(tuple(spec.name for spec in past), int(heads), int(width) * past[0].dtype.numpy.itemsize)

    def tensor(self, tokens: int) -> int:
        """From one tensor to the next, in a block of so many tokens."""
        return aligned(self.heads * tokens * self.row)

    def block(self, tokens: int) -> int:
        return len(self.names) * self.tensor(tokens)

    def addresses(self, block: int, tokens: int, *, prefix: str) -> dict[str, int]:
        """Of each tensor, `past.` in its name replaced by `prefix`."""
        return {
            name.replace("past.", prefix): block + at * self.tensor(tokens)
            for at, name in enumerate(self.names)
        }

    def store(self, stream: Stream, cache: DeviceCache, new: int, tokens: int) -> None:
        """Copies the rows of `tokens` new tokens, a block at `new`, behind those that the cache holds."""
        target, source = cache.buffer.address + cache.length * self.row, new
        to_next, from_next = self.tensor(cache.capacity), self.tensor(tokens)
        packed = (self.heads * cache.capacity * self.row, self.heads * tokens * self.row)
        whole = (to_next, from_next) == packed  # nothing between the tensors: all are one run of rows
        for at in range(1 if whole else len(self.names)):
            stream.copy_rows(
                target + at * to_next,
                source + at * from_next,
                width=tokens * self.row,
                rows=self.heads * (len(self.names) if whole else 1),
                target_pitch=cache.capacity * self.row,
                source_pitch=tokens * self.row,
            )


class DeviceCache:
    """`length` tokens of at most `capacity`. To roll back, lower `length`.

    `step` runs the decode engine over this cache; nothing else may use that context, since a graph holds for
    the very state it was captured in.
    """

    def __init__(self, cuda: Cuda, stream: Stream, layout: CacheLayout, capacity: int) -> None:
        """Raises `DeviceError` where the GPU has not enough memory."""
        self.capacity, self.length = capacity, 0
        self.buffer = DeviceBuffer(cuda, layout.block(capacity), f"a cache of {capacity} tokens")
        self.clear(stream)
        self.step: Context | None = None
        self.graph: Graph | None = None
        self.is_closed = False

    def clear(self, stream: Stream) -> None:
        """Empty, and zeros again: a prompt that gave what is no number leaves some of it."""
        stream.fill_zero(self.buffer.address, self.buffer.size)
        self.length = 0

    def close(self) -> None:
        self.is_closed = True
        if self.graph is not None:
            self.graph.close()
        if self.step is not None:
            self.step.close()
        self.graph = self.step = None
        self.buffer.close()
