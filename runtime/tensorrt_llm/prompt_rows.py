"""Frame tokens as TensorRT-LLM takes them: a table of rows, and ids above the vocabulary that select from it.

Note [Row ids]
    Id `vocab_size + r` stands for row r. The engine backend looks it up in the prompt table; the PyTorch
    backend puts its embeddings, in order, wherever an id is no word's. Two videos have the same ids, so
    neither backend may reuse a cache by ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llamavid.errors import UsageError
from llamavid.runtime.assembly import FrameTokens
from llamavid.tokenizer import SLOT_ID

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]


def rows_of(tokens: FrameTokens | None, *, width: int) -> Array:
    """Rows [R, D] by Note [Rows] of `llamavid.runtime.assembly`; none for a prompt without frames.

    Raises:
        UsageError: the tokens are of a model of another width.
    """
    if tokens is None:
        return np.empty((0, width), np.float32)
    rows = np.concatenate([tokens.context, tokens.content], axis=1)
    if rows.shape[2] != width:
        raise UsageError(
            f"frame tokens of width {rows.shape[2]}",
            expected=f"{width}, the Vicuna's",
            next_step="Bundle and Vicuna are to come from one checkpoint.",
        )
    return rows.reshape(-1, width)


def ids_with_rows(ids: Ids, rows: int, *, vocab_size: int, slots: Sequence[range] | None = None) -> Ids:
    """Ids int64 [L] with every `SLOT_ID` replaced by its rows' ids.

    Raises:
        UsageError: an id is no word's, or slots and rows do not fit each other.
    """
    marks = np.flatnonzero(ids == SLOT_ID)
    words = ids[ids != SLOT_ID]
    unknown = words[(words < 0) | (words >= vocab_size)]
    if len(unknown):
        raise UsageError(f"token id {unknown[0]}", expected=f"one from 0 to {vocab_size - 1}")
    pieces, text = list[Ids](), 0
    for mark, taken in zip(marks, _ranges(len(marks), rows, slots), strict=True):
        pieces += [ids[text:mark], vocab_size + np.arange(taken.start, taken.stop, dtype=np.int64)]
        text = int(mark) + 1
    return np.concatenate([*pieces, ids[text:]])


def _ranges(marks: int, rows: int, slots: Sequence[range] | None) -> Sequence[range]:
    """The rows of each slot."""
    if slots is None and marks in (1, rows):
        return [range(rows)] if marks == 1 else [range(row, row + 1) for row in range(rows)]
    if slots is None or len(slots) != marks:
        given = "none" if slots is None else str(len(slots))
        raise UsageError(
            f"{marks} slots for {rows} rows of frames, ranges of them: {given}", expected="one each"
        )
    for taken in slots:
        if taken.step != 1 or not 0 <= taken.start <= taken.stop <= rows:
            raise UsageError(f"rows {taken} of {rows}", expected="a range of them, step by step")
    return slots
