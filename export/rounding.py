"""What a format leaves of the PyTorch model's weights: the reference that a rounded graph must equal.

A graph in int4 is judged against PyTorch with the same int4 weights, so that a mistake
shows however much the format itself costs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from llamavid.export.eight_bits import quantize_columns
from llamavid.export.frame_types import GRAPH_PREFIX, FrameTypes
from llamavid.export.precision import Precision, dequantized
from llamavid.model.streamed import Change

Array = npt.NDArray[np.float32]


def rounding(types: FrameTypes) -> Change | None:
    """Rounds a weight [N, K] as the graphs do; None where they keep all weights."""
    precision, graphs = types.precision, types.scales.graphs if types.scales else {}
    if precision.int4_block is None and precision.eight_bits is None:
        return None
    kept = {f"{GRAPH_PREFIX[graph]}{name}.weight" for graph, found in graphs.items() for name in found.kept}

    def change(name: str, weight: Tensor) -> Tensor:
        return weight if name in kept else torch.from_numpy(_rounded(weight.numpy().T, precision).T.copy())

    return change


def round_linear(module: nn.Module, name: str, change: Change | None) -> None:
    """Applies it to the linear layers inside a filled module: tables of embeddings are no products."""
    for inner, part in module.named_modules(prefix=name):
        if change and isinstance(part, nn.Linear):
            part.weight.data = change(f"{inner}.weight", part.weight.data)


def _rounded(matrix: Array, precision: Precision) -> Array:
    if precision.int4_block:
        return dequantized(matrix, precision.int4_block)
    assert precision.eight_bits
    levels, scale = quantize_columns(matrix, precision.eight_bits, precision.compute)
    return levels.astype(np.float32) * scale
