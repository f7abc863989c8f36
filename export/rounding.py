"""What a format leaves of the PyTorch model's weights: the reference that a rounded graph must equal.

A graph in int4 is judged against PyTorch with the same int4 weights, so that a mistake
shows however much the format itself costs. A migrated weight is rounded as the graph has it, and
then restored: PyTorch's normalizations stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamavid.calibrated import Calibration
from llamavid.export.precision import Precision
from llamavid.formats.matrices import rounded_matrix
from llamavid.model.streamed import Change

_CONTENT, _LANGUAGE, _VISION = "compressor.content_projector.", "language.", "vision."


def rounding(precision: Precision, calibration: Calibration | None = None) -> Change | None:
    """Rounds a weight [N, K] as the graphs do; None where they keep all weights."""
    if not precision.rounds:
        return None

    def change(name: str, weight: Tensor) -> Tensor:
        graph, inner = placed(name)
        found = calibration.graph(graph) if calibration else None
        module = inner.removesuffix(".weight")
        if found and module in found.scales.kept:
            return weight
        migrated = found.migrated(inner, weight.numpy()) if found else weight.numpy()
        rounded = rounded_matrix(
            migrated.T,
            "int4" if precision.int4_block else precision.name,
            block=precision.int4_block,
            importance=found.importance(module) if found else None,
            compute=precision.scales or precision.compute,
        ).T
        return torch.from_numpy((found.restored(inner, rounded) if found else rounded).copy())

    return change


def placed(name: str) -> tuple[str, str]:
    """A tensor of the checkpoint -> the graph that it is in, and its name there."""
    if name.startswith(_VISION):
        return "vision", name.removeprefix(_VISION)
    if name.startswith(_LANGUAGE):
        return "llm", name.removeprefix(_LANGUAGE)
    return ("content", name.removeprefix("compressor.")) if name.startswith(_CONTENT) else ("context", name)


def round_linear(module: nn.Module, name: str, change: Change | None) -> None:
    """Applies it to the linear layers inside a filled module: tables of embeddings are no products."""
    for inner, part in module.named_modules(prefix=name):
        if change and isinstance(part, nn.Linear):
            part.weight.data = change(f"{inner}.weight", part.weight.data)
