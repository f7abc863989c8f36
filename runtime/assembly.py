"""Text embeddings and frame tokens gathered into one sequence, the language model's input.

Takes token ids with slots, gives rows; knows nothing of prompts. Two implementations give the same bits: the
NumPy one here is the truth and always works; the compiled one is used where it is installed.

Note [Rows]
    The tokens of T frames count as rows, frame by frame: for each its context token, then its k content
    tokens. Row r is token r % (1 + k) of frame r // (1 + k). A prompt about a video has one slot, which takes
    all rows; a long-video prompt has a slot for each row; a window over a stream gives each slot its range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llamavid.errors import UsageError
from llamavid.runtime.implementation import native_or_none
from llamavid.tokenizer import SLOT_ID

Array = npt.NDArray[np.floating]
COMPILED = (np.float32, np.float16)


class FrameTokens(NamedTuple):
    """T frames in the light of a question."""

    context: Array  # [T, 1, D]
    content: Array  # [T, k, D]

    @property
    def frame_count(self) -> int:
        """T."""
        return len(self.context)

    def frame(self, at: int) -> FrameTokens:
        """A copy of one frame's."""
        return FrameTokens(*(each[at : at + 1].copy() for each in self))

    def on_host(self) -> FrameTokens:
        """They are."""
        return self

    def joined(self, others: Sequence[FrameTokens]) -> FrameTokens:
        """These and the others', in order."""
        return FrameTokens(*map(np.concatenate, zip(self, *others, strict=True)))


def assemble(
    ids: npt.NDArray[np.int64],
    table: Array,
    tokens: FrameTokens,
    *,
    dtype: npt.DTypeLike,
    slots: Sequence[range] | None = None,
) -> Array:
    """The prompt as embeddings [1, L, D], each row copied and converted once.

    Args:
        ids: int64 [T], `SLOT_ID` where rows go.
        table: text embeddings [V, D], usually mapped from disk.
        slots: the rows of each slot, in the order of the ids, by Note [Rows]. Left out, one slot takes all,
            or as many slots as rows one each.

    Raises:
        UsageError: an id is not in the table, or slots and rows do not fit each other.
    """
    context, content = tokens
    ranges = slot_ranges(ids, len(table), len(context) * (1 + content.shape[1]), slots)
    text = len(ids) - len(ranges)
    sequence = np.empty((1, text + sum(map(len, ranges)), table.shape[1]), dtype)
    arrays = (table, context, content, sequence)
    native = native_or_none()
    if native is None or any(array.dtype not in COMPILED for array in arrays):
        _gather(ids, table, context, content, ranges, sequence[0])
        return sequence
    rows = None if slots is None else np.array([(taken.start, len(taken)) for taken in slots], np.int64)
    native.sequence(
        np.require(ids, np.int64, ["C", "A"]),
        *(np.require(array, requirements=["C", "A"]) for array in (table, context, content)),
        None if rows is None else rows.reshape(-1, 2),
        sequence[0],
    )
    return sequence


def slot_ranges(
    ids: npt.NDArray[np.int64], words: int, rows: int, slots: Sequence[range] | None = None
) -> Sequence[range]:
    """The rows of each slot by Note [Rows], of `rows` in all; ids are below `words`. Raises as `assemble`."""
    marks = ids == SLOT_ID
    unknown = ids[~marks & ((ids < 0) | (ids >= words))]
    if len(unknown):
        raise UsageError(f"token id {unknown[0]}", expected=f"one from 0 to {words - 1}")
    count = int(marks.sum())
    if slots is None and count in (1, rows):
        return [range(rows)] if count == 1 else [range(row, row + 1) for row in range(rows)]
    if slots is None or len(slots) != count:
        given = "none" if slots is None else str(len(slots))
        raise UsageError(
            f"{count} slots for {rows} rows of frames, ranges of them: {given}", expected="one each"
        )
    for taken in slots:
        if taken.step != 1 or not 0 <= taken.start <= max(taken.start, taken.stop) <= rows:
            raise UsageError(f"rows {taken} of {rows}", expected="a range of them, step by step")
    return slots


def _gather(
    ids: npt.NDArray[np.int64],
    table: Array,
    context: Array,
    content: Array,
    ranges: Sequence[range],
    sequence: Array,
) -> None:
    """Into `sequence` [L, D]."""
    written = text = 0
    for slot, rows in zip([*np.flatnonzero(ids == SLOT_ID), len(ids)], [*ranges, range(0)], strict=True):
        words = table[ids[text:slot]]
        sequence[written : written + len(words)] = words
        written += len(words)
        _gather_rows(rows, context, content, sequence[written : written + len(rows)])
        written += len(rows)
        text = slot + 1


def _gather_rows(rows: range, context: Array, content: Array, sequence: Array) -> None:
    """Into `sequence` [len(rows), D]: what has one place in its frame goes together."""
    per_frame = 1 + content.shape[1]
    for at, row in enumerate(rows[:per_frame]):
        frame, place = divmod(row, per_frame)
        tokens = context[frame:, 0] if place == 0 else content[frame:, place - 1]
        target = sequence[at::per_frame]
        target[:] = tokens[: len(target)]
