"""What must hold of a whole frame, both sides in turn: pixels to tokens in one go, and the median of ratios.

Published, float16, eager, a frame at a time; and the fastest of ours that is valid in this run's rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from benchmarks.gpu.errors import BOUNDS, WHOLE
from benchmarks.gpu.graphs import captured
from benchmarks.gpu.musts import best_of_ours
from benchmarks.gpu.random_model import FrameNetworks
from benchmarks.gpu.report import Report, Value
from benchmarks.gpu.timing import rounds_in_turn
from benchmarks.gpu.truth import Truth
from benchmarks.gpu.variants import (
    COMPILED_VARIANTS,
    LAST_VARIANTS,
    VARIANTS,
    Choices,
    Stages,
    Variant,
    stages,
)

GROUP = "Both sides in turn"
_ROUNDS = 20


@torch.inference_mode()
def measure_headline(
    report: Report, networks: FrameNetworks, truth: Truth, choices: Choices, batch: int
) -> None:
    """Adds the ratio and both sides; says so where no row of ours is valid."""
    best = best_of_ours(report.document()["rows"], batch=batch)
    published = next((r for r in report.rows if r.variant == VARIANTS[0].name and r.batch == 1), None)
    if best is None or published is None or published.void:
        report.skip("both sides in turn", "one of them has no valid row")
        return
    variant = next(
        each for each in (*VARIANTS, *COMPILED_VARIANTS, *LAST_VARIANTS) if each.name == best["variant"]
    )
    made = [
        stages(each, networks.to(each.dtype), truth.ids, truth.watched_pixels, choices)
        for each in (VARIANTS[0], variant)
    ]
    spent = rounds_in_turn(
        {
            "published": _one_go(VARIANTS[0], made[0], truth, 1),
            "ours": _one_go(variant, made[1], truth, batch),
        },
        truth.pixels.device,
        rounds=_ROUNDS,
    )
    ours = [each / batch for each in spent["ours"]]
    ratios = [a / b for a, b in zip(spent["published"], ours, strict=True)]
    what = f"{variant.name}, batch {batch}: a frame, times less than {VARIANTS[0].name}, batch 1"
    note = f"{statistics.median(spent['published']):.3f} and {statistics.median(ours):.3f} ms; all rounds"
    errors, bound = {"tokens": best["errors"]["whole"]}, WHOLE * BOUNDS[variant.precision]
    report.add(
        Value(GROUP, what, statistics.median(ratios), "x", min(ratios), max(ratios), errors, bound, note)
    )


def _one_go(variant: Variant, made: Stages, truth: Truth, batch: int) -> Callable[[], object]:
    pixels = truth.pixels[:batch].to(variant.dtype)
    return captured(lambda: made.tokens(pixels)).replay if variant.graphed else lambda: made.tokens(pixels)
