"""Shows what passes through the reference's modules while they run.

    with watched(block, "blocks.3", watcher):
        block(x)                          # watcher.see("inputs", "blocks.3.mlp.fc1", x), and so on

Knows our encoder's and text decoder's modules and transformers' LLaMA; changes nothing that they compute, and
computes again only what somebody watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaAttention

from llamavid.errors import CheckpointError
from llamavid.model import qformer, vision

# inputs and outputs of products; operands and scores of attentions; residual sums, by the module that was
# added; keys (as their pairs' norms) and values: what a language model keeps of a token, by its attention.
KINDS = ("inputs", "outputs", "operands", "scores", "sums")
KEYS, VALUES = "keys", "values"

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


class Watcher(Protocol):
    """Who is shown them."""

    @property
    def kinds(self) -> Collection[str]:
        """Of `KINDS`, `KEYS` and `VALUES`."""

    def see(self, kind: str, name: str, values: Tensor) -> None: ...


@contextlib.contextmanager
def watched(module: nn.Module, name: str, watcher: Watcher) -> Iterator[None]:
    """While open, what runs inside `module` is seen under `name`."""
    handles = []
    for inner, part in module.named_modules(prefix=name):
        for hooked, hook in _hooks(part, inner, watcher):
            handles.append(hooked.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(part: nn.Module, name: str, watcher: Watcher) -> Iterator[tuple[nn.Module, Hook]]:
    if isinstance(part, nn.Linear | nn.Conv2d):
        yield part, lambda _, args, out: _product(watcher, name, args[0], lambda: out)
    if isinstance(part, nn.LayerNorm) and (summed := _summed(name)):
        yield part, lambda _, args, out: _show(watcher, "sums", summed, lambda: args[0])
    if isinstance(part, vision.VisionEncoder):  # filled without its blocks: what enters the first
        yield part, lambda _, args, out: _show(watcher, "sums", "patch_embed", lambda: out)
    if isinstance(part, vision.Block):
        yield part, lambda _, args, out: _show(watcher, "sums", f"{name}.mlp", lambda: out)
    if isinstance(part, vision.SelfAttention):
        yield part, lambda module, args, out: _self_attention(watcher, name, module, args[0])
    if isinstance(part, qformer.Attention):
        yield part, lambda module, args, out: _attention(watcher, name, module, *args[:2])
    if isinstance(part, LlamaAttention):
        width = part.head_dim
        yield part.k_proj, lambda _, args, out: _show(watcher, KEYS, name, lambda: pair_norms(out, width))
        yield part.v_proj, lambda _, args, out: _show(watcher, VALUES, name, lambda: out)


def require_numbers(largest: float, what: str) -> None:
    """Raises `CheckpointError` where the largest magnitude of what was seen is infinite or no number."""
    if not largest < float("inf"):  # NaN too
        raise CheckpointError(
            f"{what} is {largest} in float32",
            expected="numbers",
            next_step="The checkpoint is damaged, or a frame is not a picture.",
        )


def pair_norms(keys: Tensor, head_dim: int) -> Tensor:
    """keys [..., heads * head_dim] -> [..., heads, head_dim / 2]: how large a key can get at any position.

    RoPE turns each pair (i, i + head_dim / 2) of a head by an angle that depends on the position: its norm
    stays, and no turn makes one of the two larger than that.
    """
    first, second = keys.unflatten(-1, (-1, 2, head_dim // 2)).unbind(-2)
    return torch.hypot(first, second)


def _show(watcher: Watcher, kind: str, name: str, values: Callable[[], Tensor]) -> None:
    if kind in watcher.kinds:
        watcher.see(kind, name, values())


def _summed(norm: str) -> str | None:
    """Whose residual sum a normalization reads; None where it reads another thing."""
    owner, _, leaf = norm.rpartition(".")
    if leaf == "norm2":
        return f"{owner}.attn"
    return owner if leaf == "norm" else None


def _product(watcher: Watcher, name: str, x: Tensor, y: Callable[[], Tensor]) -> None:
    _show(watcher, "inputs", name, lambda: x)
    _show(watcher, "outputs", name, y)


def _self_attention(watcher: Watcher, name: str, module: nn.Module, x: Tensor) -> None:
    """Its first product is no module: done once more where its result is watched."""
    assert isinstance(module, vision.SelfAttention)
    _show(watcher, "inputs", f"{name}.qkv", lambda: x)
    if {"outputs", "operands", "scores"} & set(watcher.kinds):
        bias = torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])
        qkv = F.linear(x, module.qkv.weight, bias)
        _show(watcher, "outputs", f"{name}.qkv", lambda: qkv)
        _scores(watcher, name, module.heads, *qkv.chunk(3, dim=-1))


def _attention(watcher: Watcher, name: str, module: nn.Module, x: Tensor, memory: Tensor) -> None:
    assert isinstance(module, qformer.Attention)
    if {"operands", "scores"} & set(watcher.kinds):
        asking = x.reshape(len(memory), -1, x.shape[-1])
        _scores(watcher, name, module.heads, module.query(asking), module.key(memory), module.value(memory))


def _scores(watcher: Watcher, name: str, heads: int, q: Tensor, k: Tensor, v: Tensor) -> None:
    for rows in (q, k, v):
        watcher.see("operands", name, rows)
    q, k = (rows.unflatten(-1, (heads, -1)).transpose(1, 2) for rows in (q, k))
    watcher.see("scores", name, q @ k.transpose(2, 3) / q.shape[-1] ** 0.5)
