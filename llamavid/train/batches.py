"""Which samples go together: batches of one modality and like length, in an order that the seed decides.

As the reference does it: samples are shuffled, cut into large heaps, each heap sorted by length, and the
batches of all heaps shuffled. Picture, video and text never share a batch, so no process waits for frames
that another has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_HEAP = 50  # batches that are sorted together


def batches(
    lengths: Sequence[int], groups: Sequence[str], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Every sample's index once, in batches; the last batch of a group may be short.

    Args:
        lengths: of each sample, in tokens.
        groups: of each sample, its modality.
    """
    chance = random.Random(f"{seed}/{epoch}")
    planned: list[list[int]] = []
    for group in sorted(set(groups)):
        members = [index for index, other in enumerate(groups) if other == group]
        chance.shuffle(members)
        for start in range(0, len(members), _HEAP * batch_size):
            heap = sorted(members[start : start + _HEAP * batch_size], key=lambda index: lengths[index])
            planned += [heap[i : i + batch_size] for i in range(0, len(heap), batch_size)]
    chance.shuffle(planned)
    return planned
