"""What a text decoder's layer is made of: post-norm attention and feed-forward.

Takes projected queries, keys and values; knows nothing of where they come from.

Note [Late bias]
    q (k + bk)^T = q k^T + q bk, and what is the same for all keys softmax drops: keys need no bias. The rows
    of P sum to 1, so P (v + bv) = P v + bv: values get theirs after the attention, which has 32 rows where
    the image has 257.
"""

from __future__ import annotations

from llamavid.config import TextDecoderConfig
from llamavid.export.builder import Value
from llamavid.export.layers import Layers
from llamavid.export.rewrites import Rewrite


def query_factor(layers: Layers, decoder: TextDecoderConfig, name: str) -> dict[str, float]:
    """What an attention's query projection is multiplied by; empty: the attention does it."""
    folds = Rewrite.FOLDED_SCALE in layers.rewrites
    return {f"{name}.query": (decoder.width // decoder.heads) ** -0.5} if folds else {}


def bare(layers: Layers, name: str) -> tuple[str, ...]:
    """Which of an attention's projections are given without their bias: Note [Late bias]."""
    return (f"{name}.key", f"{name}.value") if Rewrite.LATE_BIAS in layers.rewrites else ()


def attended(
    layers: Layers,
    decoder: TextDecoderConfig,
    x: Value,
    q: Value,
    k: Value,
    v: Value,
    name: str,
    bias: Value | None = None,
) -> Value:
    """x [1 or n, R, H]; q, k and v [n, R or K, H], or of one entry all -> [1 or n, R, H].

    `query_factor` is in q already, and what is `bare` has no bias yet.
    """
    scaled, head_dim = Rewrite.FOLDED_SCALE in layers.rewrites, decoder.width // decoder.heads
    mixed = layers.attention(q, k, v, decoder.heads, head_dim, name=name, bias=bias, scaled=scaled)
    if Rewrite.LATE_BIAS in layers.rewrites:
        mixed = layers.add_bias(mixed, f"{name}.value.bias", layers.read(f"{name}.value.bias"))
    return after_attention(layers, decoder, x, mixed, name)


def after_attention(layers: Layers, decoder: TextDecoderConfig, x: Value, mixed: Value, name: str) -> Value:
    """What was looked at [1 or n, R, H] joins x."""
    x = layers.add(x, layers.linear(mixed, f"{name}.output"), name)
    return layers.layer_norm(x, f"{name}.norm", decoder.norm_eps)


def feed_forward(layers: Layers, decoder: TextDecoderConfig, x: Value, name: str) -> Value:
    hidden = layers.gelu(layers.linear(x, f"{name}.up"))
    x = layers.add(x, layers.linear(hidden, f"{name}.down"), name)
    return layers.layer_norm(x, f"{name}.norm", decoder.norm_eps)
