"""Layers as ONNX nodes: each function takes values and gives one, like its PyTorch namesake.

Matrix products run in `precision.compute`, normalizations and softmax in
`precision.sensitive`. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.export.builder import MICROSOFT, GraphBuilder, Value
from llamavid.export.precision import Precision, packed_int4, quantize_int4

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layers:
    """Writes layers into `g`.

    Args:
        read: gives a weight, float32, by the name it has in our PyTorch module.
    """

    g: GraphBuilder
    read: Callable[[str], Array]
    precision: Precision

    def linear(self, x: Value, name: str, *, bias: bool = True) -> Value:
        """x [..., K] -> [..., N]; weight [N, K] under `name.weight`."""
        y = self.matmul(x, f"{name}.weight", self.read(f"{name}.weight").T)
        return self.g.op("Add", y, self.compute(f"{name}.bias")) if bias else y

    def matmul(self, x: Value, name: str, matrix: Array) -> Value:
        """x [..., K] times a weight [K, N], in the graph's format for weights."""
        x = self.g.cast(x, self.precision.compute)
        if self.precision.int4_block is None:
            return self.g.op("MatMul", x, self.weight(name, matrix))
        return self.g.op("MatMul", x, self._int4(name, matrix, self.precision.int4_block))

    def _int4(self, name: str, matrix: Array, block: int) -> Value:
        quantized = quantize_int4(matrix, block)
        scale = self.g.weight(f"{name}.scale", quantized.scale.astype(self.precision.compute.numpy))
        levels = self.g.int4_weight(name, packed_int4(quantized.levels), matrix.shape, scale)
        return self.g.op("DequantizeLinear", levels, scale, axis=0, block_size=block)

    def compute(self, name: str) -> Value:
        """The weight of that name, in the type of matrix products."""
        return self.weight(name, self.read(name))

    def weight(self, name: str, array: Array) -> Value:
        return self.g.weight(name, array.astype(self.precision.compute.numpy))

    def layer_norm(self, x: Value, name: str, eps: float) -> Value:
        """In `sensitive`; the result too."""
        scale, bias = (
            self.g.weight(f"{name}.{leaf}", self.read(f"{name}.{leaf}")) for leaf in ("weight", "bias")
        )
        return self.g.op("LayerNormalization", self.sensitive(x), scale, bias, axis=-1, epsilon=eps)

    def rms_norm(self, x: Value, name: str, eps: float) -> Value:
        scale = self.g.weight(f"{name}.weight", self.read(f"{name}.weight"))
        return self.g.op("RMSNormalization", self.sensitive(x), scale, axis=-1, epsilon=eps)

    def softmax(self, x: Value) -> Value:
        """Over the last axis, in `sensitive`; the result in `compute`."""
        return self.g.cast(self.g.op("Softmax", self.sensitive(x), axis=-1), self.precision.compute)

    def add(self, x: Value, y: Value) -> Value:
        """A residual sum, in `sensitive`."""
        return self.g.op("Add", self.sensitive(x), self.sensitive(y))

    def sensitive(self, x: Value) -> Value:
        return self.g.cast(x, self.precision.sensitive)

    def gelu(self, x: Value) -> Value:
        return self.g.op("Gelu", x)

    def scale(self, x: Value, factor: float) -> Value:
        return self.g.op("Mul", x, self.g.constant(factor, x.dtype))

    def reshape(self, x: Value, *shape: int) -> Value:
        """0 keeps a dimension, -1 is the rest."""
        return self.g.op("Reshape", x, self.g.constant(shape))

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.g.op("Transpose", x, perm=list(perm))

    def slice(self, x: Value, start: int, end: int | Value, *, axis: int) -> Value:
        """x[start:end] along one axis; `end` may be a value [1] of the graph."""
        stop = end if isinstance(end, Value) else self.g.constant([end])
        return self.g.op("Slice", x, self.g.constant([start]), stop, self.g.constant([axis]))

    def last(self, x: Value, rows: int, *, axis: int = 1) -> Value:
        """The last `rows` along an axis."""
        return self.slice(x, -rows, np.iinfo(np.int64).max, axis=axis)

    def concat(self, *values: Value, axis: int) -> Value:
        return self.g.op("Concat", *values, axis=axis)

    def dim(self, x: Value, axis: int) -> Value:
        """One dimension of x, int64 [1]."""
        return self.g.op("Shape", x, dtype=DType.INT64, start=axis, end=axis + 1)

    def repeat_first(self, x: Value, times: Value) -> Value:
        """x [1, ...] (three dimensions) -> [times, ...]."""
        shape = self.concat(times, self.g.constant([1, 1]), axis=0)
        return self.g.op("Expand", x, shape)

    def split_heads(self, x: Value, heads: int) -> Value:
        """[B, R, heads*d] -> [B, heads, R, d]."""
        return self.transpose(self.reshape(x, 0, 0, heads, -1), 0, 2, 1, 3)

    def attention(
        self, q: Value, k: Value, v: Value, heads: int, head_dim: int, bias: Value | None = None
    ) -> Value:
        """Rows q [B, R, H] look at k, v [B, K, H] -> [B, R, H]. `bias` is added to the scores."""
        q, v = self.split_heads(self.scale(q, head_dim**-0.5), heads), self.split_heads(v, heads)
        k = self.transpose(self.reshape(k, 0, 0, heads, -1), 0, 2, 3, 1)
        scores = self.g.op("MatMul", q, k)
        if bias is not None:
            scores = self.add(scores, bias)
        mixed = self.g.op("MatMul", self.softmax(scores), v)
        return self.reshape(self.transpose(mixed, 0, 2, 1, 3), 0, 0, heads * head_dim)

    def microsoft(self, kind: str, *inputs: Value | None, outputs: int, **attributes: Any) -> list[Value]:
        """An operator of ONNX Runtime's own."""
        return self.g.ops(kind, *inputs, outputs=outputs, domain=MICROSOFT, **attributes)
