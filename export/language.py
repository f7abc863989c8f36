"""The language model's graph, written layer by layer from the shards: the lowering for ONNX Runtime.

Attention is GroupQueryAttention with past and present bound to one buffer, so that
no step copies the cache: a decode step at 7,200 tokens costs 16 ms a layer where
Concat costs 72 (facts/deployment section 3).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llamavid.config import LanguageConfig
from llamavid.contract import DType
from llamavid.export.builder import Value
from llamavid.export.layers import Array, Layers


def write_language(
    layers: Layers, language: LanguageConfig, *, on_layer: Callable[[int], None] = lambda _: None
) -> None:
    """inputs_embeds [1, T, D] and the cache -> the last token's logits [1, V] and the cache.

    `on_layer(i)` is called when layer i is written.
    """
    g = layers.g
    total = g.input("total_length")
    last = g.op("Sub", total, g.constant([1], DType.INT32))  # what GroupQueryAttention calls seqlens_k
    cos_table, sin_table = rope_tables(language)
    cos, sin = layers.weight("rope.cos", cos_table), layers.weight("rope.sin", sin_table)
    x = g.input("inputs_embeds")
    for index in range(language.layers):
        with g.scope(f"layers.{index}"):
            x = _layer(layers, language, x, index, (last, total, cos, sin))
        on_layer(index)
    x = layers.rms_norm(layers.last(x, 1), "model.norm", language.norm_eps)
    logits = layers.linear(x, "lm_head", bias=False)
    g.output("logits", layers.reshape(logits, 1, language.vocab_size))


def _layer(
    layers: Layers, language: LanguageConfig, x: Value, index: int, position: tuple[Value, ...]
) -> Value:
    g, name = layers.g, f"model.layers.{index}"
    normed = layers.rms_norm(x, f"{name}.input_layernorm", language.norm_eps)
    q, k, v = (layers.linear(normed, f"{name}.self_attn.{role}_proj", bias=False) for role in "qkv")
    past = [g.input(f"past.{index}.{kind}") for kind in ("key", "value")]
    mixed, *present = layers.microsoft(
        "GroupQueryAttention",
        *(q, k, v, *past, *position),
        outputs=3,
        num_heads=language.heads,
        kv_num_heads=language.kv_heads,
        scale=language.head_dim**-0.5,
        do_rotary=1,
    )
    for kind, value in zip(("key", "value"), present, strict=True):
        g.output(f"present.{index}.{kind}", value)
    x = layers.add(x, layers.linear(mixed, f"{name}.self_attn.o_proj", bias=False))
    normed = layers.rms_norm(x, f"{name}.post_attention_layernorm", language.norm_eps)
    gate, up = (layers.linear(normed, f"{name}.mlp.{role}_proj", bias=False) for role in ("gate", "up"))
    hidden = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return layers.add(x, layers.linear(hidden, f"{name}.mlp.down_proj", bias=False))


def rope_tables(language: LanguageConfig) -> tuple[Array, Array]:
    """cos and sin, float32 [context_length, head_dim/2]; linear scaling divides the frequencies.

    In float32 throughout, as transformers computes them.
    """
    exponents = np.arange(0, language.head_dim, 2, dtype=np.float32) / np.float32(language.head_dim)
    frequencies = 1 / np.power(np.float32(language.rope_theta), exponents) / np.float32(language.rope_factor)
    angles = np.arange(language.context_length, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    return np.cos(angles), np.sin(angles)
