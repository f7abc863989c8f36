"""The language model's graph, written layer by layer from the shards: one source, three lowerings.

What differs is how a layer's new rows meet those read before: `llamavid.export.attention`.
"""

from __future__ import annotations

from collections.abc import Callable

from llamavid.config import LanguageConfig
from llamavid.contract import Lowering
from llamavid.export.attention import Attend, attention_for
from llamavid.export.builder import Value
from llamavid.export.layers import Layers
from llamavid.export.rewrites import Rewrite

# Name in the bundle. Opsets: RMSNormalization is of 23, TensorScatter of 24; TensorRT 10.3 reads 21.
GRAPH = {
    Lowering.ONNX_RUNTIME: "llm",
    Lowering.STATIC: "llm.static",
    Lowering.PRIMITIVE: "llm.primitive",
}
OPSET_OF = {Lowering.ONNX_RUNTIME: 23, Lowering.STATIC: 24, Lowering.PRIMITIVE: 21}


def write_language(
    layers: Layers,
    language: LanguageConfig,
    lowering: Lowering = Lowering.ONNX_RUNTIME,
    *,
    on_layer: Callable[[int], None] = lambda _: None,
) -> None:
    """inputs_embeds [1, T, D] and the cache -> the last token's logits [1, V] and the cache.

    `layers.g` has the lowering's contract and opset. `on_layer(i)` is called when layer i is written.
    """
    g = layers.g
    attend, cut = attention_for(lowering, layers, language), Rewrite.LAST_ROW in layers.rewrites
    x = g.input("inputs_embeds")
    for index in range(language.layers):
        with g.scope(f"layers.{index}"):
            ends = cut and index == language.layers - 1
            x = _layer(layers, language, x, index, attend, ends=ends)
        on_layer(index)
    if not cut:
        x = layers.last(x, 1)
    x = layers.rms_norm(x, "model.norm", language.norm_eps)
    logits = layers.linear(x, "lm_head", bias=False)
    g.output("logits", layers.reshape(logits, 1, language.vocab_size))


def _layer(
    layers: Layers, language: LanguageConfig, x: Value, index: int, attend: Attend, *, ends: bool
) -> Value:
    """[1, T, D] -> [1, T, D]; where it `ends`, the last row alone, as keys and values of all are written."""
    g, name = layers.g, f"model.layers.{index}"
    normed = layers.rms_norm(x, f"{name}.input_layernorm", language.norm_eps)
    q, k, v = (layers.linear(normed, f"{name}.self_attn.{role}_proj", bias=False) for role in "qkv")
    mixed = attend(q, k, v, index)
    if ends:
        x, mixed = layers.last(x, 1), layers.last(mixed, 1)
    x = layers.add(x, layers.linear(mixed, f"{name}.self_attn.o_proj", bias=False))
    normed = layers.rms_norm(x, f"{name}.post_attention_layernorm", language.norm_eps)
    gate, up = (layers.linear(normed, f"{name}.mlp.{role}_proj", bias=False) for role in ("gate", "up"))
    hidden = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return layers.add(x, layers.linear(hidden, f"{name}.mlp.down_proj", bias=False))
