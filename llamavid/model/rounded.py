"""A linear layer as its format computes it, inside the PyTorch model.

    with rounded(block, "blocks.3", calibration.graph("vision"), only={"blocks.3.mlp.fc1"}):
        block(x)

While open, weights are what the format leaves of them, and activations are rounded where they enter.
Afterwards the module is what it was. A migration is undone on both sides of the product, around the rounding,
so that normalizations stay as they are. Works on our modules and on transformers' LLaMA, in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llamavid.calibrated import GraphCalibration
from llamavid.contract import DType
from llamavid.formats.eight_bits import EightBits, representable
from llamavid.formats.matrices import rounded_matrix
from llamavid.model.vision import SelfAttention
from llamavid.scales import GraphScales

# What QuantizeLinear saturates at. Weights stop at -127; an activation past its range does not.
_INT8_ENDS = (-128.0, 127.0)


class Linear(NamedTuple):
    """A linear layer inside a module."""

    name: str  # as in the graph, `blocks.3.attn.qkv`
    linear: nn.Linear  # weight [N, K]
    entered: nn.Module  # whose first input is this layer's input


@contextlib.contextmanager
def rounded(
    module: nn.Module,
    prefix: str,
    calibration: GraphCalibration,
    *,
    only: Container[str] | None = None,
    compute: DType = DType.FLOAT32,
) -> Iterator[None]:
    """While open, what `calibration` rounds inside `module` is rounded.

    Args:
        prefix: the module's own name in the graph.
        only: names of the linear layers that it is about; None: all.
        compute: the type that the graph stores eight-bit scales in.

    Raises:
        ScalesError: a migration's vector does not fit.
    """
    layers = [
        layer
        for layer in linear_layers(module, prefix)
        if is_rounded(calibration.scales, layer.name) and (only is None or layer.name in only)
    ]
    exact = [layer.linear.weight.data for layer in layers]
    handles = []
    try:
        for layer in layers:
            layer.linear.weight.data = _rounded_weight(layer, calibration, compute)
            if hook := _entry(layer.name, calibration, compute):
                handles.append(layer.entered.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, weight in zip(layers, exact, strict=True):
            layer.linear.weight.data = weight


def linear_layers(module: nn.Module, prefix: str) -> list[Linear]:
    """Every linear layer inside, in the order of the model."""
    inside = dict(module.named_modules(prefix=prefix))
    return [
        Linear(name, part, _entered(part, inside.get(name.rpartition(".")[0])))
        for name, part in inside.items()
        if isinstance(part, nn.Linear)
    ]


def is_rounded(scales: GraphScales, module: str) -> bool:
    """Whether the graph computes that linear layer in its format."""
    return module not in scales.kept and (scales.format == "int4" or module in scales.steps)


def on_grid(x: Tensor, scale: float, format: EightBits) -> Tensor:
    """Float32 of any shape -> each number's nearest level, as QuantizeLinear and DequantizeLinear give it.

    Halves go to the even level; what is outside the range takes the last one.
    """
    levels = x / scale
    if format is EightBits.INT8:
        return levels.round_().clamp_(*_INT8_ENDS).mul_(scale)
    inside = levels.clamp_(-format.largest, format.largest)
    return inside.to(torch.float8_e4m3fn).to(torch.float32).mul_(scale)


def _entered(part: nn.Linear, owner: nn.Module | None) -> nn.Module:
    """EVA's attention multiplies with the weight of `qkv` itself: that module is never called."""
    return owner if isinstance(owner, SelfAttention) and owner.qkv is part else part


def _rounded_weight(layer: Linear, calibration: GraphCalibration, compute: DType) -> Tensor:
    """[N, K] -> [N, K]."""
    name, scales = f"{layer.name}.weight", calibration.scales
    migrated = calibration.migrated(name, layer.linear.weight.data.numpy())
    matrix = rounded_matrix(
        migrated.T,
        scales.format,
        block=scales.block,
        importance=calibration.importance(layer.name),
        compute=compute,
    )
    return torch.from_numpy(np.ascontiguousarray(calibration.restored(name, matrix.T)))


def _entry(
    name: str, calibration: GraphCalibration, compute: DType
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]] | None:
    """Rounds what enters a module; None where the format leaves activations alone."""
    if calibration.scales.format == "int4":
        return None
    scale = float(representable(calibration.scales.steps[name].scale, compute))
    format = EightBits(calibration.scales.format)
    vector = calibration.input_divisor(name)
    divisor = None if vector is None else torch.from_numpy(vector)

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = inputs
        if divisor is None:
            return on_grid(x, scale, format), *others
        return on_grid(x / divisor, scale, format).mul_(divisor), *others

    return enter
