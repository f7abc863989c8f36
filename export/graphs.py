"""The three frame graphs, written from the same names as the PyTorch modules they mirror.

    vision   `llamavid.model.vision.VisionEncoder`
    content  `llamavid.model.compressor.Compressor.content_tokens`
    context  `llamavid.model.qformer.TextDecoderModel`, then `Compressor.context_tokens` and
             `Compressor.context_attention`

This is the plain form, operation by operation; the exact rewrites of facts
section 11 are passes over it. A sum and an attention are named after their module, as
`llamavid.export.scan` names what it measures.
"""

from __future__ import annotations

import numpy as np

from llamavid.config import ModelConfig, TextDecoder, TextDecoderConfig
from llamavid.contract import ATTENTION, RELEVANCE, DType
from llamavid.export.builder import Value, stored_as
from llamavid.export.layers import Layers


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
    qkv = layers.matmul(normed, f"{name}.attn.qkv.weight", layers.read(f"{name}.attn.qkv.weight").T)
    q_bias, v_bias = layers.read(f"{name}.attn.q_bias"), layers.read(f"{name}.attn.v_bias")
    bias = np.concatenate([q_bias, np.zeros_like(q_bias), v_bias])
    qkv = layers.add_bias(qkv, f"{name}.attn.qkv.bias", bias)
    q, k, v = g.ops("Split", qkv, outputs=3, axis=-1, num_outputs=3)
    mixed = layers.attention(q, k, v, vision.heads, head_dim, name=f"{name}.attn")
    x = layers.add(x, layers.linear(mixed, f"{name}.attn.proj"), f"{name}.attn")
    normed = layers.layer_norm(x, f"{name}.norm2", vision.norm_eps)
    hidden = layers.gelu(layers.linear(normed, f"{name}.mlp.fc1"))
    return layers.add(x, layers.linear(hidden, f"{name}.mlp.fc2"), f"{name}.mlp")


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
    g = layers.g
    features = g.input("features")
    patches = _patches(layers, config, features)
    hidden = g.mark(_text_decoder(layers, config, features, patches, g.input("question_ids")), "text_hidden")
    query = g.mark(layers.linear(hidden, "compressor.query_projector"), "text_query")
    with g.scope("context"):
        dtype = layers.product_type("compressor.context")
        keys = g.cast(layers.linear(patches, "compressor.key_projector"), dtype)
        asked = layers.scale(g.cast(query, dtype), config.vision.width**-0.5)
        scores = layers.sensitive(g.op("MatMul", asked, layers.transpose(keys, 0, 2, 1)))
        weights = g.op("Softmax", scores, axis=-1)
        gathered = g.op("MatMul", g.cast(weights, dtype), g.cast(patches, dtype))
        mean = g.op("ReduceMean", layers.sensitive(gathered), g.constant([1]), keepdims=1)
        g.output("context_tokens", layers.linear(mean, "compressor.value_projector"))
        g.output(ATTENTION, g.op("ReduceMean", weights, g.constant([1]), keepdims=0))
        g.output(RELEVANCE, _relevance(layers, scores))


def _relevance(layers: Layers, scores: Value) -> Value:
    """Scores [n, M, N] -> [n]: how far the highest stands above their mean, averaged over the queries."""
    g = layers.g
    highest, mean = (g.op(kind, scores, g.constant([2]), keepdims=0) for kind in ("ReduceMax", "ReduceMean"))
    return g.op("ReduceMean", g.op("Sub", highest, mean), g.constant([1]), keepdims=0)


def _text_decoder(layers: Layers, config: ModelConfig, features: Value, patches: Value, ids: Value) -> Value:
    """Rows of the text decoder [n, M or L, H]."""
    decoder, g = config.text_decoder, layers.g
    image = _image_rows(layers, decoder, features, patches)
    x = layers.repeat_first(_embedded(layers, decoder, ids), layers.dim(features, 0))
    bias = _causal_bias(layers, decoder, ids)
    for index in range(decoder.layers):
        with g.scope(f"layers.{index}"):
            x = _text_layer(layers, decoder, x, image, bias, index)
    return layers.slice(x, 0, decoder.queries, axis=1) if decoder.queries else x


def _image_rows(layers: Layers, decoder: TextDecoderConfig, features: Value, patches: Value) -> Value:
    if decoder.kind is TextDecoder.RAW_BERT:
        return layers.linear(patches, "text_decoder.image_projection")
    rows = layers.linear(features, "text_decoder.image_projection") if decoder.projects_image else features
    return layers.layer_norm(rows, "text_decoder.image_norm", decoder.image_norm_eps)


def _embedded(layers: Layers, decoder: TextDecoderConfig, ids: Value) -> Value:
    """Queries, which have no position, and words [1, M+L, H]."""
    g = layers.g
    positions = layers.slice(
        layers.compute("text_decoder.position_embeddings.weight"), 0, layers.dim(ids, 1), axis=0
    )
    x = g.op("Add", g.op("Gather", layers.compute("text_decoder.word_embeddings.weight"), ids), positions)
    if decoder.kind is TextDecoder.RAW_BERT:
        types = layers.read("text_decoder.token_type_embeddings.weight")
        x = g.op("Add", x, layers.weight("text_decoder.token_type_embeddings.row", types[0]))
    else:
        x = layers.concat(layers.compute("text_decoder.queries"), x, axis=1)
    return layers.layer_norm(x, "text_decoder.embedding_norm", decoder.norm_eps)


def _causal_bias(layers: Layers, decoder: TextDecoderConfig, ids: Value) -> Value | None:
    """Raw BERT's words look back only; [L, L], added to the scores."""
    if decoder.kind is TextDecoder.Q_FORMER:
        return None
    ahead = np.triu(np.full(2 * [decoder.max_tokens], np.finfo(np.float32).min), k=1)
    table = layers.g.weight("text_decoder.causal_bias", ahead.astype(DType.FLOAT32.numpy))
    length = layers.dim(ids, 1)
    return layers.slice(layers.slice(table, 0, length, axis=0), 0, length, axis=1)


def _text_layer(
    layers: Layers, decoder: TextDecoderConfig, x: Value, image: Value, bias: Value | None, index: int
) -> Value:
    name = f"text_decoder.layers.{index}"
    x = _post_norm_attention(layers, decoder, x, x, f"{name}.attention", bias)
    if decoder.kind is TextDecoder.RAW_BERT:
        x = _post_norm_attention(layers, decoder, x, image, f"{name}.cross_attention")
        return _feed_forward(layers, decoder, x, f"{name}.feed_forward")
    queries = layers.slice(x, 0, decoder.queries, axis=1)
    words = layers.slice(x, decoder.queries, np.iinfo(np.int64).max, axis=1)
    if decoder.has_cross_attention(index):
        queries = _post_norm_attention(layers, decoder, queries, image, f"{name}.cross_attention")
    return layers.concat(
        _feed_forward(layers, decoder, queries, f"{name}.query_feed_forward"),
        _feed_forward(layers, decoder, words, f"{name}.feed_forward"),
        axis=1,
    )


def _post_norm_attention(
    layers: Layers, decoder: TextDecoderConfig, x: Value, memory: Value, name: str, bias: Value | None = None
) -> Value:
    q, k, v = (
        layers.linear(rows, f"{name}.{role}")
        for rows, role in ((x, "query"), (memory, "key"), (memory, "value"))
    )
    head_dim = decoder.width // decoder.heads
    mixed = layers.attention(q, k, v, decoder.heads, head_dim, name=name, bias=bias)
    x = layers.add(x, layers.linear(mixed, f"{name}.output"), name)
    return layers.layer_norm(x, f"{name}.norm", decoder.norm_eps)


def _feed_forward(layers: Layers, decoder: TextDecoderConfig, x: Value, name: str) -> Value:
    hidden = layers.gelu(layers.linear(x, f"{name}.up"))
    x = layers.add(x, layers.linear(hidden, f"{name}.down"), name)
    return layers.layer_norm(x, f"{name}.norm", decoder.norm_eps)
