"""Vicuna with a cache that stays where it is. Equal to `PlainLanguage`.

    language = FastLanguage(plain, tokens=8192)
    logits = language.prefill(embeddings)                    # [T, D] -> [V]
    logits = language.decode(embedding, position, held=512)  # [1, D], int64 [1] on the device -> [V]

A decode step has the same shapes at every position, so that a CUDA graph may be replayed: the new key is
written at `position`, and attention reads the first `held` places, those after `position` hidden. One graph
for each of a few lengths keeps what is read for nothing small.
"""

from __future__ import annotations

import enum
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.compiling import Compile, not_compiled
from benchmarks.gpu.plain_language import LanguageLayer, PlainLanguage, rotary_angles, turned


class Attention(enum.Enum):
    """How one token's query reads a long cache."""

    KERNEL = "PyTorch's kernel, with a mask"
    SPLIT = "in parts, by batched products"  # Note [Parts]


# Note [Parts]
#   A kernel gives each head to one of the chip's processors, 32 of an H200's 132, which then read 7,200
#   keys one after the other. Cut into parts along the tokens, all of them read; weights are normalized over
#   the whole, so that the parts' sums add up ("flash decoding").
PARTS = 8


class FastLanguage(nn.Module):
    """One sequence; `tokens` is the length of its cache."""

    turn: Tensor

    def __init__(
        self,
        plain: PlainLanguage,
        *,
        tokens: int,
        attention: Attention = Attention.SPLIT,
        compile: Compile = not_compiled,
    ) -> None:
        """Takes its weights from `plain`, in their dtype and where they are; joined ones are copies."""
        super().__init__()
        config, weight = plain.config, plain.lm_head.weight
        self.plain, self.attention = plain, attention
        self.layers = nn.ModuleList(FastLanguageLayer(layer) for layer in plain.layers)
        positions = torch.arange(tokens, device=weight.device)
        self.register_buffer("turn", rotary_angles(config, positions))
        shape = (config.kv_heads, tokens, config.head_dim)
        self.caches = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in plain.layers]
        self.run_prefill, self.run_step = compile(_prefill_layer), compile(_step_layer)

    def prefill(self, embeddings: Tensor) -> Tensor:
        """A prompt [T, D] into an empty cache -> logits [V] of its last row."""
        x, turn = embeddings, self.turn[:, : len(embeddings)]
        for layer, (keys, values) in zip(self.layers, self.caches, strict=True):
            x = self.run_prefill(layer, x, turn, keys, values)
        return self.plain.logits(x[-1:])[0]

    def decode(self, embedding: Tensor, position: Tensor, *, held: int) -> Tensor:
        """One token [1, D] at `position` int64 [1], below `held` -> logits [V]."""
        x, turn = embedding, self.turn.index_select(1, position)
        hidden = torch.arange(held, device=x.device) > position
        for layer, (keys, values) in zip(self.layers, self.caches, strict=True):
            x = self.run_step(
                layer, x, turn, keys[:, :held], values[:, :held], position, hidden, self.attention
            )
        return self.plain.logits(x)[0]


class FastLanguageLayer(nn.Module):
    """q, k and v are one product; gate and up are one product."""

    qkv: Tensor
    gate_up: Tensor

    def __init__(self, plain: LanguageLayer) -> None:
        super().__init__()
        own, mlp = plain.self_attn, plain.mlp
        self.head_dim = plain.head_dim
        self.kv_heads = cast(nn.Linear, own["k_proj"]).out_features // plain.head_dim
        self.register_buffer("qkv", _joined(own, "q_proj", "k_proj", "v_proj"))
        self.register_buffer("gate_up", _joined(mlp, "gate_proj", "up_proj"))
        self.output, self.down = own["o_proj"], mlp["down_proj"]
        self.before, self.between = plain.input_layernorm, plain.post_attention_layernorm

    def projected(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, D] -> q [heads, T, d], k and v [kv heads, T, d], q and k turned to their positions."""
        rows = F.linear(self.before(x), self.qkv).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
        q, k, v = rows.split([len(rows) - 2 * self.kv_heads, self.kv_heads, self.kv_heads])
        return turned(q, turn), turned(k, turn), v

    def after(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The layer's input and what attention gathered [heads, T, d] -> the layer's output [T, D]."""
        x = x + self.output(mixed.transpose(0, 1).flatten(1))
        gate, up = F.linear(self.between(x), self.gate_up).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def _prefill_layer(layer: FastLanguageLayer, x: Tensor, turn: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, k, v = layer.projected(x, turn)
    keys[:, : len(x)] = k
    values[:, : len(x)] = v
    shared = len(q) // len(k)
    if shared > 1:
        k, v = k.repeat_interleave(shared, dim=0), v.repeat_interleave(shared, dim=0)
    mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    return layer.after(x, mixed)


def _step_layer(
    layer: FastLanguageLayer,
    x: Tensor,
    turn: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    hidden: Tensor,
    attention: Attention,
) -> Tensor:
    q, k, v = layer.projected(x, turn)
    keys.index_copy_(1, position, k)
    values.index_copy_(1, position, v)
    asking = q.unflatten(0, (len(keys), -1)).squeeze(2)  # [kv heads, queries of each, d]
    if attention is Attention.KERNEL:
        allowed = (~hidden)[None, None, None]
        mixed = F.scaled_dot_product_attention(asking[None], keys[None], values[None], attn_mask=allowed)[0]
    else:
        mixed = _in_parts(asking, keys, values, hidden)
    return layer.after(x, mixed.flatten(0, 1)[:, None])


def _in_parts(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
    """q [K, G, d], keys and values [K, S, d] -> [K, G, d]; Note [Parts]."""
    parts = PARTS if keys.shape[1] % PARTS == 0 else 1
    cut_keys, cut_values = (rows.unflatten(1, (parts, -1)) for rows in (keys, values))  # [K, P, S / P, d]
    scores = (q * q.shape[-1] ** -0.5)[:, None] @ cut_keys.transpose(2, 3)  # [K, P, G, S / P]
    scores = scores.transpose(1, 2).flatten(2).float().masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1).to(q.dtype).unflatten(-1, (parts, -1)).transpose(1, 2)
    return (weights @ cut_values).float().sum(dim=1).to(q.dtype)


def _joined(modules: nn.ModuleDict, *names: str) -> Tensor:
    return torch.cat([cast(Tensor, modules[name].weight) for name in names])
