"""Largest magnitudes of what passes through PyTorch modules while they run.

    with watched(block, "blocks.3", meter):
        block(x)

Knows our encoder's and text decoder's modules; changes nothing that they compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamavid.errors import CheckpointError
from llamavid.model import qformer, vision

KINDS = ("inputs", "outputs", "operands", "scores", "sums")

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


class Meter:
    """Keeps the largest magnitude of each kind and name."""

    def __init__(self, graph: str) -> None:
        self.graph = graph
        self.largest: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}

    def see(self, kind: str, name: str, values: Tensor) -> None:
        """Raises `CheckpointError` where float32 itself does not hold a value."""
        found = float(values.abs().amax())
        if not found < float("inf"):  # NaN too
            raise CheckpointError(
                f"{name} of graph {self.graph} gives {found} in float32 ({kind})",
                expected="numbers",
                next_step="The checkpoint is damaged, or a frame is not a picture.",
            )
        self.largest[kind][name] = max(found, self.largest[kind].get(name, 0.0))


@contextlib.contextmanager
def watched(module: nn.Module, name: str, meter: Meter) -> Iterator[None]:
    """While open, what runs inside `module` is seen under `name`."""
    handles = []
    for inner, part in module.named_modules(prefix=name):
        if hook := _hook(part, inner, meter):
            handles.append(part.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(part: nn.Module, name: str, meter: Meter) -> Hook | None:
    if isinstance(part, nn.Linear | nn.Conv2d):
        return lambda _, args, out: _product(meter, name, args[0], out)
    if isinstance(part, nn.LayerNorm) and (summed := _summed(name)):
        return lambda _, args, out: meter.see("sums", summed, args[0])
    if isinstance(part, vision.VisionEncoder):  # filled without its blocks: what enters the first
        return lambda _, args, out: meter.see("sums", "patch_embed", out)
    if isinstance(part, vision.Block):
        return lambda _, args, out: meter.see("sums", f"{name}.mlp", out)
    if isinstance(part, vision.SelfAttention):
        return lambda module, args, out: _self_attention(meter, name, module, args[0])
    if isinstance(part, qformer.Attention):
        return lambda module, args, out: _attention(meter, name, module, *args[:2])
    return None


def _summed(norm: str) -> str | None:
    """Whose residual sum a normalization reads; None where it reads another thing."""
    owner, _, leaf = norm.rpartition(".")
    if leaf == "norm2":
        return f"{owner}.attn"
    return owner if leaf == "norm" else None


def _product(meter: Meter, name: str, x: Tensor, y: Tensor) -> None:
    meter.see("inputs", name, x)
    meter.see("outputs", name, y)


def _self_attention(meter: Meter, name: str, module: nn.Module, x: Tensor) -> None:
    """Its first product is no module: done once more."""
    assert isinstance(module, vision.SelfAttention)
    bias = torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])
    qkv = F.linear(x, module.qkv.weight, bias)
    _product(meter, f"{name}.qkv", x, qkv)
    q, k, v = qkv.chunk(3, dim=-1)
    _scores(meter, name, module.heads, q, k, v)


def _attention(meter: Meter, name: str, module: nn.Module, x: Tensor, memory: Tensor) -> None:
    assert isinstance(module, qformer.Attention)
    asking = x.reshape(len(memory), -1, x.shape[-1])
    q, k, v = module.query(asking), module.key(memory), module.value(memory)
    _scores(meter, name, module.heads, q, k, v)


def _scores(meter: Meter, name: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> None:
    for rows in (q, k, v):
        meter.see("operands", name, rows)
    q, k = (rows.unflatten(-1, (heads, -1)).transpose(1, 2) for rows in (q, k))
    meter.see("scores", name, q @ k.transpose(2, 3) / q.shape[-1] ** 0.5)
