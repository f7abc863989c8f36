"""One variant at one batch: Table 9's columns in milliseconds a frame, and the error of each.

What is compared is what is timed: after the last round, the result that lies there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.errors import BOUNDS, relative
from benchmarks.gpu.graphs import captured
from benchmarks.gpu.report import Row
from benchmarks.gpu.timing import timed
from benchmarks.gpu.truth import Truth
from benchmarks.gpu.variants import Stages, Variant
from llamavid.runtime.profile.figures import Figure

ROUNDS = 15


@torch.inference_mode()
def measured_row(variant: Variant, stages: Stages, truth: Truth, batch: int) -> Row:
    """Each module reads the truth rounded to the variant's dtype; `whole` goes from pixels to tokens.

    Raises:
        torch.OutOfMemoryError: the batch is too large here.
    """
    pixels, features, hidden = (
        each[:batch].to(variant.dtype) for each in (truth.pixels, truth.features, truth.hidden)
    )
    kept = stages.kept(features)
    work: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "encoder": (lambda: stages.encoder(pixels), truth.features),
        "content": (lambda: stages.content(features), truth.content),
        "decoder": (lambda: stages.decoder(kept), truth.hidden),
        "context": (lambda: stages.context(features, hidden), truth.context),
        "whole": (lambda: stages.tokens(pixels), truth.tokens),
    }
    if stages.keep is not None:
        keep = stages.keep
        work["kept"] = (lambda: keep(features), keep(features))
    columns: dict[str, Figure] = {}
    errors: dict[str, float] = {}
    for name, (run, expected) in work.items():
        columns[name], result = _timed(run, graphed=variant.graphed)
        errors[name] = relative(result, expected[:batch])
    a_frame = {name: figure.times(1 / batch) for name, figure in columns.items()}
    return Row(variant.name, variant.precision, batch, a_frame, errors, BOUNDS[variant.precision])


def _timed(run: Callable[[], Tensor], *, graphed: bool) -> tuple[Figure, Tensor]:
    """And the result that lay there at the end."""
    if graphed:
        graph = captured(run)
        graph.result.fill_(float("nan"))  # what a replay does not write is seen
        return timed(graph.replay, graph.result.device, rounds=ROUNDS), graph.result
    result = run()
    return timed(run, result.device, rounds=ROUNDS), run()
