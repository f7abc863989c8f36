"""The prompt as embeddings: words from the language model's table, rows of frames where its slots are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llamavid.tokenizer import SLOT_ID


def embedded(ids: Tensor, rows: Sequence[Tensor] | Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Prompt ids int64 [T] -> embeddings [L, D]; `rows[i]` [r, D] takes the place of slot i.

    Args:
        embed: ids [t] -> rows [t, D] of the table.
    """
    pieces: list[Tensor] = []
    text = 0
    slots = (ids == SLOT_ID).nonzero().flatten().tolist()
    assert len(slots) == len(rows)
    for slot, inserted in zip(slots, rows, strict=True):
        pieces += [embed(ids[text:slot]), inserted]
        text = slot + 1
    return torch.cat([*pieces, embed(ids[text:])])
