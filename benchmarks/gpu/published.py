"""The published computation: explicit attention, and each frame asked the whole question.

Takes the plain networks and their inputs, gives what they give. What `llamavid/model` shares between frames
(the question's first layer) or leaves to a fused kernel (attention) is written out here, as it was published.
Content and context are published computation already: `Compressor` itself.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.compiling import Compile, not_compiled
from llamavid.model.qformer import Attention, Layer, TextDecoderModel
from llamavid.model.vision import Block, VisionEncoder


def published_features(vision: VisionEncoder, pixels: Tensor, *, compile: Compile = not_compiled) -> Tensor:
    """pixels [T, 3, S, S] -> features [T, 1+N, C]."""
    x, run_block = published_patches(vision, pixels), compile(published_block)
    for block in cast("list[Block]", vision.blocks):
        x = run_block(block, x)
    return x


def published_patches(vision: VisionEncoder, pixels: Tensor) -> Tensor:
    """What enters the first block, [T, 1+N, C]."""
    patches = vision.patch_embed(pixels)
    return torch.cat([vision.cls_token.expand(len(patches), -1, -1), patches], dim=1) + vision.pos_embed


def published_block(block: Block, x: Tensor) -> Tensor:
    """x [T, R, C] -> x [T, R, C]."""
    own = block.attn
    bias = torch.cat([own.q_bias, torch.zeros_like(own.q_bias), own.v_bias])
    qkv = F.linear(block.norm1(x), own.qkv.weight, bias)
    q, k, v = qkv.unflatten(-1, (3, own.heads, -1)).permute(2, 0, 3, 1, 4)
    x = x + own.proj(_explicit(q * q.shape[-1] ** -0.5, k, v))
    return x + block.mlp(block.norm2(x))


def published_hidden(
    decoder: TextDecoderModel, features: Tensor, ids: Tensor, *, compile: Compile = not_compiled
) -> Tensor:
    """features [T, R, C] and the question's ids [1, L] -> hidden [T, M or L, H]; T questions are read."""
    image = decoder._image_rows(features)
    asked = ids.expand(len(features), -1)
    x, run_layer = decoder._embed(asked), compile(published_layer)
    bias = decoder._attention_bias(torch.ones_like(asked), x.dtype)
    for layer in cast("list[Layer]", decoder.layers):
        x = run_layer(layer, x, image, bias)
    return x[:, : decoder.config.queries] if decoder.config.queries else x


def published_layer(layer: Layer, x: Tensor, image: Tensor, bias: Tensor) -> Tensor:
    """x [T, M+L, H] -> x [T, M+L, H]."""
    x = _attention(layer.attention, x, x, bias)
    if not layer.queries:
        return layer.feed_forward(_attention(layer.cross_attention, x, image))
    queries, words = x[:, : layer.queries], x[:, layer.queries :]
    if hasattr(layer, "cross_attention"):
        queries = _attention(layer.cross_attention, queries, image)
    return torch.cat([layer.query_feed_forward(queries), layer.feed_forward(words)], dim=1)


def _attention(own: Attention, x: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (
        rows.unflatten(-1, (own.heads, -1)).transpose(1, 2)
        for rows in (own.query(x), own.key(memory), own.value(memory))
    )
    return own.norm(x + own.output(_explicit(q / q.shape[-1] ** 0.5, k, v, bias)))


def _explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled q [T, heads, Q, d], k and v [T, heads, K, d] -> rows [T, Q, heads d]."""
    scores = q @ k.transpose(-2, -1)
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)
