"""The three frame graphs, written from the same names as the PyTorch modules they mirror.

    vision   `llamavid.model.vision.VisionEncoder`
    content  `llamavid.model.compressor.Compressor.content_tokens`
    context  `llamavid.model.qformer.TextDecoderModel`, then `Compressor.context_tokens` and
             `Compressor.context_attention`

Without `layers.rewrites` this is the plain form, operation by operation; `llamavid.export.rewrites` says what
else there is. A sum and an attention are named after their module, as `llamavid.export.scan` names what it
measures.
"""

from __future__ import annotations

import numpy as np

from llamavid.config import ModelConfig
from llamavid.contract import DType
from llamavid.export.builder import Value, stored_as
from llamavid.export.context_attention import write_context_attention
from llamavid.export.layers import Array, Layers
from llamavid.export.rewrites import Rewrite
from llamavid.export.text_decoder import text_rows


def write_vision(layers: Layers, config: ModelConfig) -> None:
    """pixels [n, 3, S, S] -> features [n, 1+N, C]."""
    g, vision = layers.g, config.vision
    dtype = layers.product_type("patch_embed.proj")
    if dtype is DType.BFLOAT16:
        dtype = DType.FLOAT32  # Conv has no bfloat16 before opset 22; it is 0.2 % of the encoder
    pixels, size = g.cast(g.input("pixels"), dtype), [vision.patch_size] * 2
    kernel, bias = (
        g.weight(name, stored_as(layers.read(name), dtype))
        for name in ("patch_embed.proj.weight", "patch_embed.proj.bias")
    )
    patches = g.op("Conv", pixels, kernel, bias, kernel_shape=size, strides=size)
    patches = layers.transpose(layers.reshape(patches, 0, vision.width, vision.patches), 0, 2, 1)
    class_token = g.weight("cls_token", stored_as(layers.read("cls_token"), dtype))
    class_row = layers.repeat_first(class_token, layers.dim(pixels, 0))
    x = layers.add(layers.concat(class_row, patches, axis=1), layers.compute("pos_embed"), "patch_embed")
    for index in range(vision.depth):
        with g.scope(f"blocks.{index}"):
            x = _vision_block(layers, config, x, f"blocks.{index}")
    g.output("features", x)


def _vision_block(layers: Layers, config: ModelConfig, x: Value, name: str) -> Value:
    g, vision = layers.g, config.vision
    head_dim = vision.width // vision.heads
    normed = layers.layer_norm(x, f"{name}.norm1", vision.norm_eps)
    weight, bias = _qkv(layers, f"{name}.attn")
    scaled = Rewrite.FOLDED_SCALE in layers.rewrites
    if scaled:
        weight, bias = (_with_scaled_queries(array, head_dim) for array in (weight, bias))
    qkv = layers.matmul(normed, f"{name}.attn.qkv.weight", weight.T)
    late = Rewrite.LATE_BIAS in layers.rewrites
    if not late:
        qkv = layers.add_bias(qkv, f"{name}.attn.qkv.bias", bias)
    q, k, v = g.ops("Split", qkv, outputs=3, axis=-1, num_outputs=3)
    if late:
        q = layers.add_bias(q, f"{name}.attn.q_bias", bias[: vision.width])
    mixed = layers.attention(q, k, v, vision.heads, head_dim, name=f"{name}.attn", scaled=scaled)
    if late:
        mixed = layers.add_bias(mixed, f"{name}.attn.v_bias", bias[2 * vision.width :])
    x = layers.add(x, layers.linear(mixed, f"{name}.attn.proj"), f"{name}.attn")
    normed = layers.layer_norm(x, f"{name}.norm2", vision.norm_eps)
    hidden = layers.gelu(layers.linear(normed, f"{name}.mlp.fc1"))
    return layers.add(x, layers.linear(hidden, f"{name}.mlp.fc2"), f"{name}.mlp")


def _qkv(layers: Layers, name: str) -> tuple[Array, Array]:
    """Weight [3 C, C] and bias [3 C]; keys have no bias."""
    q_bias, v_bias = layers.read(f"{name}.q_bias"), layers.read(f"{name}.v_bias")
    return layers.read(f"{name}.qkv.weight"), np.concatenate([q_bias, np.zeros_like(q_bias), v_bias])


def _with_scaled_queries(array: Array, head_dim: int) -> Array:
    """Rows of queries, keys and values [3 C, ...]; those of queries over sqrt(head_dim)."""
    return np.concatenate([array[: len(array) // 3] * np.float32(head_dim**-0.5), array[len(array) // 3 :]])


def write_content(layers: Layers, config: ModelConfig) -> None:
    """features [n, R, C] -> content tokens [n, n_content, D]: pooled first, projected after."""
    x = _pooled(layers, config, _patches(layers, config, layers.g.input("features")))
    for index in range(config.projector_depth):
        x = layers.linear(layers.gelu(x) if index else x, f"content_projector.{2 * index}")
    layers.g.output("content_tokens", x)


def _patches(layers: Layers, config: ModelConfig, features: Value) -> Value:
    """The last N rows: stored features come without the class token."""
    vision = config.vision
    return layers.reshape(layers.last(features, vision.patches), 0, vision.patches, vision.width)


def _pooled(layers: Layers, config: ModelConfig, patches: Value) -> Value:
    if config.pool_grid is None:
        return patches
    grid, kernel, width = config.vision.grid, config.pool_kernel, config.vision.width
    side = grid // kernel
    square = layers.reshape(layers.sensitive(patches), 0, grid, grid, width)
    if side * kernel != grid:  # rows and columns that do not fill a kernel are left out
        square = layers.slice(layers.slice(square, 0, side * kernel, axis=1), 0, side * kernel, axis=2)
    windows = layers.reshape(square, 0, side, kernel, side, kernel, width)
    mean = layers.g.op("ReduceMean", windows, layers.g.constant([2, 4]), keepdims=0)
    return layers.reshape(mean, 0, side * side, width)


def write_context(layers: Layers, config: ModelConfig) -> None:
    """features [n, R, C], ids [1, L] of a question -> context tokens [n, 1, D], and what was looked at."""
    features = layers.g.input("features")
    patches = _patches(layers, config, features)
    hidden = text_rows(layers, config.text_decoder, features, patches, layers.g.input("question_ids"))
    write_context_attention(layers, config, layers.g.mark(hidden, "text_hidden"), patches)
