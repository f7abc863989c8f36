"""A prompt as embeddings on the GPU: text from the host's table, frames' tokens from where they lie.

The counterpart of `llamavid.runtime.assembly`, whose rules for slots hold here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.elements import as_elements, as_floats
from llamavid.runtime.assembly import FrameTokens, slot_ranges
from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
from llamavid.runtime.tensorrt.cuda import Cuda, Stream
from llamavid.tokenizer import SLOT_ID

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class DeviceTokens:
    """T frames in the light of a question, on the GPU: a row of 1 + k tokens each, context token first.

    frames: of each frame, the buffer and which row of it. Equal frames may share one.
    stream: what wrote them, or still does.
    """

    frames: tuple[tuple[DeviceBuffer, int], ...]
    a_frame: int  # tokens, 1 + k
    width: int  # D
    dtype: DType
    stream: Stream

    @property
    def frame_count(self) -> int:
        return len(self.frames)

    def frame(self, at: int) -> DeviceTokens:
        """One frame's, which keeps its buffer alive."""
        return DeviceTokens((self.frames[at],), self.a_frame, self.width, self.dtype, self.stream)

    def joined(self, others: Sequence[DeviceTokens]) -> DeviceTokens:
        """These and the others', in order."""
        frames = (frame for tokens in (self, *others) for frame in tokens.frames)
        return DeviceTokens(tuple(frames), self.a_frame, self.width, self.dtype, self.stream)

    def on_host(self) -> FrameTokens:
        """A copy, in float16 or float32."""
        rows = self.values()
        return FrameTokens(rows[:, :1], rows[:, 1:])

    def values(self) -> Array:
        """[T, 1 + k, D] brought to the host. Raises `DeviceError`."""
        row, count = self.width * self.dtype.itemsize, self.frame_count * self.a_frame
        found = PinnedBuffer(self.stream.cuda, count * row)
        at = found.address
        for rows, source in _runs(self, range(count), row):
            self.stream.copy(at, source, rows * row)
            at += rows * row
        self.stream.synchronize()
        shape = (self.frame_count, self.a_frame, self.width)
        return as_floats(found.view(self.dtype.numpy, shape), self.dtype).copy()


@dataclass(frozen=True)
class DeviceSequence:
    """Embeddings [1, L, D] in the language engine's type."""

    buffer: DeviceBuffer
    shape: tuple[int, int, int]
    staging: PinnedBuffer  # the text's rows on their way: to be kept until the stream has copied them


def device_sequence(
    cuda: Cuda,
    stream: Stream,
    ids: npt.NDArray[np.int64],
    table: Array,
    tokens: DeviceTokens | None,
    *,
    dtype: DType,
) -> DeviceSequence:
    """The prompt, put on `stream`. As `llamavid.runtime.assembly.assemble`; each row is copied once.

    Raises:
        UsageError: an id is not in the table, or slots and frames do not fit each other.
        DeviceError: there is not enough memory.
    """
    a_frame = tokens.a_frame if tokens else 1
    ranges = slot_ranges(ids, len(table), tokens.frame_count * a_frame if tokens else 0)
    words = ids[ids != SLOT_ID]
    row = table.shape[1] * dtype.numpy.itemsize
    length = len(words) + sum(map(len, ranges))
    buffer = DeviceBuffer(cuda, length * row, f"a sequence of {length} tokens")
    staging = PinnedBuffer(cuda, len(words) * row)
    staging.view(dtype.numpy, (len(words), table.shape[1]))[...] = as_elements(table[words], dtype)
    if tokens is not None:
        tokens = _in_type(cuda, tokens, dtype)
        stream.wait_for(tokens.stream)
    for at, count, source in _pieces(ids, ranges, staging, tokens, row):
        stream.copy(buffer.address + at * row, source, count * row)
    return DeviceSequence(buffer, (1, length, table.shape[1]), staging)


def _pieces(
    ids: npt.NDArray[np.int64],
    ranges: Sequence[range],
    staging: PinnedBuffer,
    tokens: DeviceTokens | None,
    row: int,
) -> Iterator[tuple[int, int, int]]:
    """(place in the sequence, rows, address that they come from), in order."""
    written = text = read = 0
    for slot, rows in zip([*np.flatnonzero(ids == SLOT_ID), len(ids)], [*ranges, range(0)], strict=True):
        words = int(slot) - text
        if words:
            yield written, words, staging.address + read * row
        written, read, text = written + words, read + words, int(slot) + 1
        if tokens is not None:
            for count, source in _runs(tokens, rows, row):
                yield written, count, source
                written += count


def _runs(tokens: DeviceTokens, rows: range, row: int) -> Iterator[tuple[int, int]]:
    """(rows, address) of what lies together, for a range of Note [Rows]."""
    start = count = 0
    for at in rows:
        frame, place = divmod(at, tokens.a_frame)
        buffer, which = tokens.frames[frame]
        address = buffer.address + (which * tokens.a_frame + place) * row
        if count and address == start + count * row:
            count += 1
            continue
        if count:
            yield count, start
        start, count = address, 1
    if count:
        yield count, start


def _in_type(cuda: Cuda, tokens: DeviceTokens, dtype: DType) -> DeviceTokens:
    """Frame and language engines may differ in type. Numbers are converted on the host, a few kB a frame."""
    if tokens.dtype is dtype:
        return tokens
    values = as_elements(tokens.values(), dtype)
    made = PinnedBuffer(cuda, values.nbytes)
    made.view(dtype.numpy, values.shape)[...] = values
    buffer = DeviceBuffer(cuda, values.nbytes, f"the tokens of {tokens.frame_count} frames")
    tokens.stream.copy(buffer.address, made.address, values.nbytes)
    tokens.stream.synchronize()
    frames = tuple((buffer, frame) for frame in range(tokens.frame_count))
    return DeviceTokens(frames, tokens.a_frame, tokens.width, dtype, tokens.stream)
