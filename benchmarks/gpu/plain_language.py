"""Vicuna as it was published: explicit attention, and a cache that is joined anew at every step.

Takes embeddings, gives the last row's logits. The model's own reference is transformers' LLaMA, which a bare
machine may lack; this one is tested equal to it, has its parameter names, and is the truth here.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamavid.config import LanguageConfig

Cache = list[tuple[Tensor, Tensor]]  # of each layer: keys and values [kv heads, tokens, d]


class PlainLanguage(nn.Module):
    """embeddings [T, D], after what `cache` holds -> logits [V] of the last row; the cache grows by T."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden),
                "layers": nn.ModuleList(LanguageLayer(config) for _ in range(config.layers)),
                "norm": RmsNorm(config),
            }
        )
        self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[LanguageLayer]:
        return cast("list[LanguageLayer]", self.model["layers"])

    def forward(self, embeddings: Tensor, cache: Cache) -> Tensor:
        before = cache[0][0].shape[1] if cache else 0
        positions = torch.arange(before, before + len(embeddings), device=embeddings.device)
        turn = rotary_angles(self.config, positions)
        x = embeddings
        for place, layer in enumerate(self.layers):
            x, held = layer(x, turn, cache[place] if before else None)
            cache[place : place + 1] = [held]
        return self.logits(x[-1:])[0]

    def logits(self, rows: Tensor) -> Tensor:
        """[T, D] -> [T, V]."""
        return self.lm_head(self.model["norm"](rows))


@torch.inference_mode()
def float32_logits(language: PlainLanguage, embeddings: Tensor, rows: int) -> Tensor:
    """The truth: logits [rows, V] of the last rows, in float32 from the same weights.

    A layer at a time, so that no second copy of the weights is held.
    """
    x = embeddings.float()
    turn = rotary_angles(language.config, torch.arange(len(x), device=x.device))
    for layer in language.layers:
        x, _ = copy.deepcopy(layer).float()(x, turn, None)
    norm, head = (copy.deepcopy(part).float() for part in (language.model["norm"], language.lm_head))
    return head(norm(x[-rows:]))


class LanguageLayer(nn.Module):
    """x [T, D] -> x [T, D], and the keys and values of all tokens so far."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        hidden, size = config.hidden, config.head_dim
        self.head_dim = size
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(config), RmsNorm(config)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(hidden, config.heads * size, bias=False),
                "k_proj": nn.Linear(hidden, config.kv_heads * size, bias=False),
                "v_proj": nn.Linear(hidden, config.kv_heads * size, bias=False),
                "o_proj": nn.Linear(config.heads * size, hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, config.mlp_width, bias=False),
                "up_proj": nn.Linear(hidden, config.mlp_width, bias=False),
                "down_proj": nn.Linear(config.mlp_width, hidden, bias=False),
            }
        )

    def forward(
        self, x: Tensor, turn: Tensor, held: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        rows, own = self.input_layernorm(x), self.self_attn
        q, k, v = (
            own[name](rows).unflatten(-1, (-1, self.head_dim)).transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k = turned(q, turn), turned(k, turn)
        if held is not None:
            k, v = torch.cat([held[0], k], dim=1), torch.cat([held[1], v], dim=1)
        x = x + own["o_proj"](_explicit(q, k, v).transpose(0, 1).flatten(1))
        rows, mlp = self.post_attention_layernorm(x), self.mlp
        x = x + mlp["down_proj"](F.silu(mlp["gate_proj"](rows)) * mlp["up_proj"](rows))
        return x, (k, v)


def _explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [heads, T, d], the last T of the tokens in k and v [kv heads, S, d] -> [heads, T, d]."""
    count, total = q.shape[1], k.shape[1]
    shared = len(q) // len(k)
    k, v = (rows.repeat_interleave(shared, dim=0) if shared > 1 else rows for rows in (k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if count > 1:
        later = torch.ones(count, total, dtype=torch.bool, device=q.device).triu(total - count + 1)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v


class RmsNorm(nn.Module):
    """In float32, as LLaMA has it."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.eps, self.weight = config.norm_eps, nn.Parameter(torch.ones(config.hidden))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_angles(config: LanguageConfig, positions: Tensor) -> Tensor:
    """positions [T] -> cosines and sines float32 [2, T, d]; a linear factor divides positions (facts 7)."""
    halves = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=positions.device)
    exponents = halves / config.head_dim
    angles = torch.outer(positions.double() / config.rope_factor, config.rope_theta**-exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """x [heads, T, d] by `rotary_angles` of the same T; the halves of a head are a plane's coordinates."""
    first, second = x.float().chunk(2, dim=-1)
    cosines, sines = turn
    return (x.float() * cosines + torch.cat([-second, first], dim=-1) * sines).to(x.dtype)
