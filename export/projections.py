"""Linear layers of one input, as one product where that is asked for, and matrices multiplied ahead of time.

    q, k, v = projections(layers, x, [f"{name}.query", f"{name}.key", f"{name}.value"])

Names are those of modules; a matrix made of several is stored under all of them. Knows no model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from llamavid.export.builder import Value
from llamavid.export.layers import Array, Layers
from llamavid.export.rewrites import Rewrite


def projections(
    layers: Layers,
    x: Value,
    names: Sequence[str],
    *,
    factors: dict[str, float] | None = None,
    bare: Collection[str] = (),
) -> list[Value]:
    """x [..., K] -> one [..., N] for each linear layer; all of one width N.

    Args:
        factors: what a layer's weight and bias are multiplied by; a layer without one is as it is.
        bare: those that are given without their bias.
    """
    factors = factors or {}
    if Rewrite.ONE_PRODUCT not in layers.rewrites or not layers.alike(names):
        return [projection(layers, x, name, factors.get(name), bare=name in bare) for name in names]
    return joined(layers, x, names, factors, bare=bare)


def joined(
    layers: Layers,
    x: Value,
    names: Sequence[str],
    factors: dict[str, float] | None = None,
    *,
    bare: Collection[str] = (),
) -> list[Value]:
    """The same, always as one product."""
    factors = factors or {}
    if len(names) == 1:
        return [projection(layers, x, names[0], factors.get(names[0]), bare=names[0] in bare)]
    parts = [_parameters(layers, name, factors.get(name)) for name in names]
    matrices, biases = zip(*parts, strict=True)
    together = _together(names)
    y = layers.matmul(x, f"{together}.weight", np.concatenate(matrices, axis=-1), like=names[0])
    if not bare:
        y = layers.add_bias(y, f"{together}.bias", np.concatenate(biases))
    values = layers.g.ops("Split", y, outputs=len(names), axis=-1, num_outputs=len(names))
    if not bare:
        return values
    return [
        value if name in bare else layers.add_bias(value, f"{name} alone.bias", bias)
        for value, name, bias in zip(values, names, biases, strict=True)
    ]


def projection(
    layers: Layers, x: Value, name: str, factor: float | None = None, *, bare: bool = False
) -> Value:
    """x [..., K] -> [..., N], `factor` times what the linear layer gives."""
    if factor is None:
        return layers.linear(x, name, bias=not bare)
    matrix, bias = _parameters(layers, name, factor)
    y = layers.matmul(x, f"{name} scaled.weight", matrix)
    return y if bare else layers.add_bias(y, f"{name} scaled.bias", bias)


def _parameters(layers: Layers, name: str, factor: float | None) -> tuple[Array, Array]:
    """Matrix [K, N] and bias [N]."""
    times = np.float32(1 if factor is None else factor)
    return layers.read(f"{name}.weight").T * times, layers.read(f"{name}.bias") * times


def _together(names: Sequence[str]) -> str:
    """`layers.0.attention.query+key+value`; where owners differ too, all that differs."""
    owners = [name.rpartition(".")[0] for name in names]
    if len(set(owners)) == 1:
        return f"{owners[0]}.{'+'.join(name.rpartition('.')[2] for name in names)}"
    return "+".join(names)
