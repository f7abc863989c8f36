"""Weights that no published file holds, drawn as the published code draws them.

Note [What is fresh]
    The projectors (`mm_projector`, `vlm_att_projector`, `vlm_att_key_projector`, `vlm_att_val_projector` and
    raw BERT's `vlm_att_bert_proj`) are PyTorch's own Linear: weights and biases uniform within
    1/sqrt(inputs). What raw BERT has and BERT has not, the cross-attention and the row for [DEC], is BERT's
    own: normal with std `initializer_range`, biases 0, norms 1 and 0. InstructBLIP has [DEC]'s row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llamavid.model.compressor import projector


def fresh_compressor(*, width: int, hidden: int, text_width: int, depth: int, seed: int) -> dict[str, Tensor]:
    """The compressor by our names, float32: C = `width`, D = `hidden`, H = `text_width`.

    Args:
        depth: linear layers of `mm_projector`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = {
            "content_projector": projector(width, hidden, depth),
            "query_projector": nn.Linear(text_width, width),
            "key_projector": nn.Linear(width, width),
            "value_projector": nn.Linear(width, hidden),
        }
    return _named("compressor.", made)


def fresh_for_bert(*, width: int, text_width: int, layers: int, std: float, seed: int) -> dict[str, Tensor]:
    """What raw BERT needs besides BERT, by our names, float32: the image projection C -> H, cross-attention.

    Args:
        std: BERT's `initializer_range`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # not the compressor's numbers again
        made: dict[str, nn.Module] = {"image_projection": nn.Linear(width, text_width)}
        for index in range(layers):
            made[f"layers.{index}.cross_attention"] = _cross_attention(text_width, std)
    return _named("text_decoder.", made)


def word_row(*, text_width: int, std: float, seed: int) -> Tensor:
    """[DEC]'s row [1, H], float32. The reference adds the token, and no question has it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(1, text_width).normal_(std=std, generator=generator)


def _cross_attention(width: int, std: float) -> nn.ModuleDict:
    linears = {role: nn.Linear(width, width) for role in ("query", "key", "value", "output")}
    for linear in linears.values():
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
    return nn.ModuleDict({**linears, "norm": nn.LayerNorm(width)})


def _named(prefix: str, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{prefix}{place}.{name}": weight.detach()
        for place, module in modules.items()
        for name, weight in module.named_parameters()
    }
