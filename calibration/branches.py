"""Many variants of a model that does not fit in memory, in one pass over its weights.

A variant is a set of rounded modules. One block is in memory at a time; what each variant has made of the
sample so far is a branch. A variant that has met none of its modules yet is the exact model and costs
nothing: its branch begins at the first block where it differs, and later blocks see it as one more row of the
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llamavid.calibrated import GraphCalibration
from llamavid.model.rounded import rounded
from llamavid.model.streamed import BATCH, Part

Items = tuple[Tensor, ...]  # each [B, R, C]: frames, or prompts of several lengths
Variants = Sequence[Collection[str]]  # the modules that each one rounds, as the graph names them


@dataclass
class Branches:
    """Where every variant is."""

    exact: Items
    own: dict[int, Items] = field(default_factory=dict)  # by variant; one that is missing is still exact

    def of(self, variant: int) -> Items:
        return self.own.get(variant, self.exact)


def advance(
    branches: Branches,
    parts: Iterable[Part],
    variants: Variants,
    calibration: GraphCalibration | None,
    *,
    on_run: Callable[[int], None] = lambda runs: None,
) -> Iterator[int]:
    """Takes every branch through one part after another, in place; yields after each.

    Args:
        on_run: called with the number of branches that have gone through a part since it was called last.

    Yields:
        How many parts are done.
    """
    for done, part in enumerate(parts, 1):
        name = graph_name(part.name)
        touched = [i for i, modules in enumerate(variants) if any(is_inside(m, name) for m in modules)]
        passing = sorted(branches.own.keys() - set(touched))
        for group in _groups(passing, branches.exact):
            outputs = _run(part, [branches.own[variant] for variant in group])
            branches.own.update(zip(group, outputs, strict=True))
            on_run(len(group))
        for variant in touched:
            assert calibration is not None  # of a graph that has none, no module is in a variant
            with rounded(part.module, name, calibration, only=variants[variant]):
                (branches.own[variant],) = _run(part, [branches.of(variant)])
            on_run(1)
        (branches.exact,) = _run(part, [branches.exact])
        on_run(1)
        yield done


def graph_name(part: str) -> str:
    """`vision.blocks.3` -> `blocks.3`, as graphs say."""
    return part.partition(".")[2]


def is_inside(module: str, part: str) -> bool:
    """Whether a part of that name, as graphs say, holds the module."""
    return module == part or (part != "" and module.startswith(f"{part}."))


def runs_left(parts: Sequence[str], variants: Variants, first: int) -> int:
    """How often a branch goes through a part from part `first` on, the exact one too."""
    starts = [
        min((at for at, part in enumerate(parts) if any(is_inside(m, part) for m in modules)), default=None)
        for modules in variants
    ]
    return sum(len(parts) - max(start, first) for start in (0, *starts) if start is not None)


def _groups(variants: list[int], items: Items) -> Iterator[list[int]]:
    """Branches that run together: some `BATCH` rows of the first axis."""
    size = max(1, BATCH // len(items[0]))
    yield from (variants[at : at + size] for at in range(0, len(variants), size))


def _run(part: Part, group: Sequence[Items]) -> list[Items]:
    outputs = []
    for same in zip(*group, strict=True):
        rows = torch.cat(same)
        done = torch.cat([part.run(chunk) for chunk in rows.split(BATCH)])
        outputs.append(done.split(len(same[0])))
    return list(zip(*outputs, strict=True))
