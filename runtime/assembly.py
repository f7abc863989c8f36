"""Text embeddings and frame tokens gathered into one sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llamavid.tokenizer import SLOT_ID

Array = npt.NDArray[np.floating]


def assemble(ids: npt.NDArray[np.int64], table: Array, rows: Sequence[Array], *, dtype: np.dtype) -> Array:
    """The prompt as embeddings [1, L, D], each row copied once.

    Args:
        ids: int64 [T], `SLOT_ID` where rows go.
        table: text embeddings [V, D], usually mapped from disk.
        rows: for each slot in order, [r, D].
    """
    slots = np.flatnonzero(ids == SLOT_ID)
    assert len(slots) == len(rows), f"{len(slots)} slots, {len(rows)} sets of rows"
    sequence = np.empty((1, len(ids) - len(slots) + sum(map(len, rows)), table.shape[1]), dtype)
    written = text = 0
    for slot, inserted in zip([*slots, len(ids)], [*rows, table[:0]], strict=True):
        for piece in (table[ids[text:slot]], inserted):
            sequence[0, written : written + len(piece)] = piece
            written += len(piece)
        text = slot + 1
    return sequence
