"""Attention over a key-value cache, in three lowerings: new rows q, k, v of a layer -> what they attend to.

    attend = attention_for(Lowering.STATIC, layers, language)
    mixed = attend(q, k, v, index)      # q [1, T, heads*d], k and v [1, T, kv_heads*d] -> [1, T, heads*d]

Each reads `past.{index}.*` and writes the outputs that its contract names (`language_contract`).

Note [Masks]
    A row at position p sees the positions up to p. That is written as numbers added to the scores:
    `is_causal` aligns the first of T rows with the first of the cache when the two differ in length, so that
    a lone new row would see position 0 and nothing else (facts/deployment section 2). The positions follow
    from `total_length`, which is data: no shape depends on it, so a decode step has one shape from the first
    token to the last. Hidden scores get a large number less, not -inf: a kernel that meets a block of
    nothing but -inf computes inf - inf. Its half of what the type holds leaves room for the score itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from llamavid.config import LanguageConfig
from llamavid.contract import DType, Lowering
from llamavid.errors import ScalesError
from llamavid.export.builder import Value, stored_as
from llamavid.export.layers import Array, Layers
from llamavid.scales import AGAIN

Attend = Callable[[Value, Value, Value, int], Value]

_HIDDEN = {DType.FLOAT32: -1.7e38, DType.BFLOAT16: -1.7e38, DType.FLOAT16: -32752.0}
_LARGEST_INT8 = 127
_KINDS, _TABLES = ("key", "value"), ("rope.cos", "rope.sin")


def attention_for(lowering: Lowering, layers: Layers, language: LanguageConfig) -> Attend:
    """Writes what all layers share, positions and masks, and gives the function that writes one layer's."""
    lowerings = {
        Lowering.ONNX_RUNTIME: _grouped_query,
        Lowering.STATIC: _static,
        Lowering.PRIMITIVE: _primitive,
    }
    return lowerings[lowering](layers, language)


def _grouped_query(layers: Layers, language: LanguageConfig) -> Attend:
    """ONNX Runtime's own operation, on one buffer for past and present.

    No step copies the cache: a decode step at 7,200 tokens costs 16 ms a layer where Concat costs 72
    (facts/deployment section 3).
    """
    g, total = layers.g, layers.g.input("total_length")
    last = g.op("Sub", total, g.constant([1], DType.INT32))  # what GroupQueryAttention calls seqlens_k
    cache = layers.precision.cache or layers.precision.compute
    dtype = DType.FLOAT32 if cache is DType.INT8 else cache  # Note [Types of the cache] of `precision`
    tables = zip(_TABLES, rope_tables(language), strict=True)
    cos, sin = (g.weight(name, stored_as(table, dtype)) for name, table in tables)

    def attend(q: Value, k: Value, v: Value, index: int) -> Value:
        new = (g.cast(rows, dtype) for rows in (q, k, v))
        past = [g.input(f"past.{index}.{kind}") for kind in _KINDS]
        scales, rounding = _cache_rounding(layers, index) if cache is DType.INT8 else ((), {})
        mixed, *present = layers.microsoft(
            "GroupQueryAttention",
            *(*new, *past, last, total, cos, sin, *scales),
            outputs=3,
            num_heads=language.heads,
            kv_num_heads=language.kv_heads,
            scale=language.head_dim**-0.5,
            do_rotary=1,
            **rounding,
        )
        for kind, value in zip(_KINDS, present, strict=True):
            g.output(f"present.{index}.{kind}", Value(value.name, cache))
        return mixed

    return attend


def _cache_rounding(layers: Layers, index: int) -> tuple[tuple[Value | None, ...], dict[str, Any]]:
    """What GroupQueryAttention is given to keep keys and values in eight bits: inputs, and attributes.

    Raises:
        ScalesError: calibration did not see that layer's.
    """
    module, found = f"model.layers.{index}.self_attn", layers.calibration and layers.calibration.scales
    if not found or not {module} <= found.keys.keys() & found.values.keys():
        raise ScalesError(
            f"no range for the keys and values of {module}",
            expected="one for every layer whose cache is int8",
            next_step=AGAIN,
        )
    key, value = (
        layers.g.constant([ranges[module] / _LARGEST_INT8], DType.FLOAT32)
        for ranges in (found.keys, found.values)
    )
    unused = (None, None, None)  # positions, a bias of scores, sinks
    kinds = {f"{kind}_quant_type": "PER_TENSOR" for kind in "kv"}
    return (*unused, key, value), {"kv_cache_bit_width": 8, **kinds}


def _static(layers: Layers, language: LanguageConfig) -> Attend:
    """New rows are scattered into the whole cache, and Attention looks at all of it through a mask.

    TensorRT does the first in place, and only where the result is an output of the graph itself.
    """
    g = layers.g
    new = _new_rows(layers, language)
    columns = layers.slice(new.iota, 0, layers.dim(g.input("past.0.key"), 2), axis=0)
    seen = g.op("LessOrEqual", columns, layers.reshape(new.positions, -1, 1))
    mask = _mask(layers, seen, layers.precision.compute)  # [T, cache]
    write_at = g.cast(new.start, DType.INT64)

    def attend(q: Value, k: Value, v: Value, index: int) -> Value:
        rows = _rotated(layers, language, new, q, k, v)
        present = [
            g.op(
                "TensorScatter",
                *(g.input(f"past.{index}.{kind}"), value, write_at),
                result=f"present.{index}.{kind}",
                axis=2,
                mode="linear",
            )
            for kind, value in zip(_KINDS, rows[1:], strict=True)
        ]
        q = layers.scale(rows[0], language.head_dim**-0.5)
        mixed = g.op("Attention", q, *present, mask, is_causal=0, scale=1.0)
        return layers.join_heads(mixed, language.heads * language.head_dim)

    return attend


def _primitive(layers: Layers, language: LanguageConfig) -> Attend:
    """Products and Softmax alone. Past and new rows are scored apart, so that no step copies the cache.

    The `group` query heads of one key-value head are rows of one product: [1, kv_heads, group*T, d].
    """
    g, sensitive = layers.g, layers.precision.sensitive
    new = _new_rows(layers, language)
    cache = layers.dim(g.input("past.0.key"), 2)
    past_mask = _mask(layers, g.op("Less", layers.slice(new.iota, 0, cache, axis=0), new.start), sensitive)
    columns = layers.slice(new.iota, 0, new.length, axis=0)
    earlier = g.op("LessOrEqual", columns, layers.reshape(columns, -1, 1))
    new_mask = _mask(layers, earlier, sensitive)
    kv_heads, group, width = language.kv_heads, language.heads // language.kv_heads, language.head_dim

    def scores(q: Value, keys: Value, mask: Value) -> Value:
        """[kv_heads, group, T, K]."""
        product = g.op("MatMul", q, layers.transpose(keys, 0, 1, 3, 2))
        return layers.add(layers.reshape(product, kv_heads, group, -1, 0), mask)

    def mixed(weights: Value, values: Value) -> Value:
        """[1, kv_heads, group*T, d]."""
        return g.op("MatMul", layers.reshape(weights, 1, kv_heads, -1, 0), values)

    def attend(q: Value, k: Value, v: Value, index: int) -> Value:
        q, k, v = _rotated(layers, language, new, q, k, v)
        for kind, value in zip(_KINDS, (k, v), strict=True):
            g.output(f"new.{index}.{kind}", value)
        key, value = (g.input(f"past.{index}.{kind}") for kind in _KINDS)
        q = layers.reshape(layers.scale(q, width**-0.5), 1, kv_heads, -1, width)
        both = layers.concat(scores(q, key, past_mask), scores(q, k, new_mask), axis=-1)
        weights = layers.softmax(both)
        of_past, of_new = (
            layers.slice(weights, 0, cache, axis=-1),
            layers.slice(weights, cache, None, axis=-1),
        )
        rows = g.op("Add", mixed(of_past, value), mixed(of_new, v))
        return layers.join_heads(layers.reshape(rows, 1, language.heads, -1, width), language.heads * width)

    return attend


class _NewRows(NamedTuple):
    """The T rows of this call, for every layer."""

    iota: Value  # int32 [context_length]: 0, 1, 2 ...
    length: Value  # int64 [1]: T
    start: Value  # int32 [1]: the first one's position
    positions: Value  # int32 [T]
    cos: Value  # float32 [T, d/2]
    sin: Value


def _new_rows(layers: Layers, language: LanguageConfig) -> _NewRows:
    g = layers.g
    iota = g.weight("positions", np.arange(language.context_length, dtype=np.int32))
    length = layers.dim(g.input("inputs_embeds"), 1)
    start = g.op("Sub", g.input("total_length"), g.cast(length, DType.INT32))
    positions = g.op("Add", layers.slice(iota, 0, length, axis=0), start)
    tables = zip(_TABLES, rope_tables(language), strict=True)
    cos, sin = (
        g.cast(g.op("Gather", _table(layers, name, table), positions, axis=0), DType.FLOAT32)
        for name, table in tables
    )
    return _NewRows(iota, length, start, positions, cos, sin)


def _table(layers: Layers, name: str, table: Array) -> Value:
    """In float32, unless another lowering stored it in the type of products: 33 MB at 65,536 tokens."""
    g, compute = layers.g, layers.precision.compute
    stored = g.stored(name, DType.FLOAT32) or g.stored(name, compute)
    return stored or g.weight(name, table)


def _mask(layers: Layers, seen: Value, dtype: DType) -> Value:
    """0 where `seen`, else what hides a score."""
    g = layers.g
    values = (g.constant(number, dtype) for number in (0.0, _HIDDEN[dtype]))
    return g.op("Where", seen, *values, dtype=dtype)


def _rotated(
    layers: Layers, language: LanguageConfig, new: _NewRows, q: Value, k: Value, v: Value
) -> tuple[Value, Value, Value]:
    """Heads apart, q and k turned to their positions: [1, heads, T, d]."""
    q, k = (
        _rotate(layers, layers.split_heads(rows, heads), new, language.head_dim // 2)
        for rows, heads in ((q, language.heads), (k, language.kv_heads))
    )
    return q, k, layers.split_heads(v, language.kv_heads)


def _rotate(layers: Layers, x: Value, new: _NewRows, half: int) -> Value:
    """Pairs are an element of the first half and its like in the second, as in transformers; in float32."""
    g, wide = layers.g, layers.g.cast(x, DType.FLOAT32)
    a, b = layers.slice(wide, 0, half, axis=-1), layers.last(wide, half, axis=-1)
    turned = layers.concat(
        g.op("Sub", g.op("Mul", a, new.cos), g.op("Mul", b, new.sin)),
        g.op("Add", g.op("Mul", b, new.cos), g.op("Mul", a, new.sin)),
        axis=-1,
    )
    return g.cast(turned, x.dtype)


def rope_tables(language: LanguageConfig) -> tuple[Array, Array]:
    """cos and sin, float32 [context_length, head_dim/2]; linear scaling divides the frequencies.

    In float32 throughout, as transformers computes them.
    """
    exponents = np.arange(0, language.head_dim, 2, dtype=np.float32) / np.float32(language.head_dim)
    frequencies = 1 / np.power(np.float32(language.rope_theta), exponents) / np.float32(language.rope_factor)
    angles = np.arange(language.context_length, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    return np.cos(angles), np.sin(angles)
