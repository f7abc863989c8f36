"""Layers as ONNX nodes: each function takes values and gives one, like its PyTorch namesake.

Matrix products run in `precision.compute`, normalizations and softmax in
`precision.sensitive`, and a `TypePlan` makes exceptions by name. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.calibrated import GraphCalibration
from llamavid.contract import DType
from llamavid.errors import ScalesError
from llamavid.export.builder import MICROSOFT, GraphBuilder, Value, stored_as
from llamavid.export.precision import Precision
from llamavid.export.rewrites import NONE, Rewrites
from llamavid.export.type_plan import CAREFUL, TypePlan
from llamavid.formats.eight_bits import EightBits, quantize_columns, representable
from llamavid.formats.int4 import missing_rows, packed_int4, quantize_int4
from llamavid.remarks import Attention, Int4Product, Int8Product

Array = npt.NDArray[np.float32]

OPSET_RMS_NORM = 23  # the first with RMSNormalization


@dataclass(frozen=True)
class Layers:
    """Writes layers into `g`.

    Args:
        read: gives a weight, float32, by the name it has in our PyTorch module.
        plan: which sums and products have another type than the precision's.
        calibration: ranges of activations, where the precision rounds them, and what is not rounded at all.
        rewrites: exact ones that are used; the plain form without them.
    """

    g: GraphBuilder
    read: Callable[[str], Array]
    precision: Precision
    plan: TypePlan = CAREFUL
    calibration: GraphCalibration | None = None
    rewrites: Rewrites = NONE

    def linear(self, x: Value, name: str, *, bias: bool = True) -> Value:
        """x [..., K] -> [..., N]; weight [N, K] under `name.weight`."""
        y = self._product_with_stored(x, f"{name}.weight")
        if y is None:
            y = self.matmul(x, f"{name}.weight", self.read(f"{name}.weight").T)
        return self.add_bias(y, f"{name}.bias", self.read(f"{name}.bias")) if bias else y

    def add_bias(self, y: Value, name: str, bias: Array) -> Value:
        """In y's type, which the plan may have widened."""
        added = self.g.weight(name, stored_as(bias, y.dtype))
        summed, remark = self.g.op("Add", y, added), self.g.remark_on(y)
        if isinstance(remark, Int8Product):
            self.g.remark(summed, replace(remark, bias=added.name))
        return summed

    def matmul(self, x: Value, name: str, matrix: Array, *, like: str | None = None) -> Value:
        """x [..., K] times a weight [K, N], in the graph's format for weights; `name` ends in `.weight`.

        like: the module whose type and step it has; None: the one that it is named after.
        """
        module = like or name.removesuffix(".weight")
        dtype = self.product_type(module)
        x, precision = self.g.cast(x, dtype), self.precision
        if precision.int4_block and not self._kept(module):
            zeros = missing_rows(len(matrix), precision.int4_block)
            x, matrix = self._lengthened(x, zeros), np.pad(matrix, ((0, zeros), (0, 0)))
            self.g.data.lengthened[name] = zeros
            return self._int4_product(x, *self._int4(name, module, matrix, dtype, zeros))
        if precision.eight_bits and not self._kept(module):
            return self._rounded_product(
                x, module, *self._eight_bits(name, matrix, precision.eight_bits, dtype)
            )
        weight = self.g.weight(name, stored_as(matrix, precision.stored or dtype))
        return self.g.op("MatMul", x, self.g.cast(weight, dtype))

    def product_type(self, module: str) -> DType:
        """In which a linear layer or an attention of that name multiplies."""
        return DType.FLOAT32 if module in self.plan.wide_products else self.precision.compute

    def _lengthened(self, x: Value, zeros: int) -> Value:
        """x [..., K] -> [..., K + zeros]."""
        if not zeros:
            return x
        pads, axes = self.g.constant([0, zeros]), self.g.constant([-1])
        return self.g.op("Pad", x, pads, None, axes)

    def alike(self, modules: Sequence[str]) -> bool:
        """Whether one product can be that of all these, which share an input: of one type, rounded alike."""
        if len({self.product_type(module) for module in modules}) > 1:
            return False
        if not self.precision.rounds or self.calibration is None:
            return True
        scales = self.calibration.scales
        return len({(m in scales.kept, scales.steps.get(m), scales.importance.get(m)) for m in modules}) == 1

    def _int4(self, name: str, module: str, matrix: Array, dtype: DType, zeros: int) -> tuple[Value, Value]:
        """Levels of a weight [K, N], and its blocks' scales."""
        block, calibration = self.precision.int4_block, self.calibration
        assert block
        importance = calibration.importance(module) if calibration else None
        if importance is not None:
            importance = np.pad(importance, (0, zeros))
        quantized = quantize_int4(matrix, block, importance)
        scale = self.g.weight(f"{name}.scale", stored_as(quantized.scale, dtype))
        return self.g.int4_weight(name, packed_int4(quantized.levels), matrix.shape, scale), scale

    def _int4_product(self, x: Value, levels: Value, scales: Value) -> Value:
        """x as it is times a weight's levels, which go through DequantizeLinear, typed as x."""
        block = self.precision.int4_block
        assert block
        weight = self.g.op("DequantizeLinear", levels, scales, axis=0, block_size=block)
        y = self.g.op("MatMul", x, weight)
        if x.dtype is DType.FLOAT32:
            self.g.remark(y, Int4Product(x.name, levels.name, scales.name, block))
        return y

    def _eight_bits(self, name: str, matrix: Array, format: EightBits, dtype: DType) -> tuple[Value, Value]:
        """Levels of a weight [K, N], and its columns' scales."""
        levels, scales = quantize_columns(matrix, format, self.precision.scales or dtype)
        scale = self.g.weight(f"{name}.scale", stored_as(scales, dtype))
        return self.g.eight_bit_weight(name, levels, format, scale), scale

    def _rounded_product(self, x: Value, module: str, levels: Value, scales: Value) -> Value:
        """x as its nearest levels times a weight's: both go through DequantizeLinear, typed as x."""
        format = self.precision.eight_bits
        assert self.calibration is not None
        assert format is not None
        step = self.calibration.scales.steps[module]
        scale = self.g.constant(representable(step.scale, x.dtype), x.dtype)
        zero = self.g.zero_point(format, scale)
        rounded = self.g.op("QuantizeLinear", x, scale, zero)
        rounded = self.g.op("DequantizeLinear", rounded, scale, zero, dtype=x.dtype)
        weight = self.g.op("DequantizeLinear", levels, scales, axis=1, dtype=x.dtype)
        y = self.g.op("MatMul", rounded, weight)
        if format is EightBits.INT8 and x.dtype is DType.FLOAT32:
            self.g.remark(y, Int8Product(x.name, scale.name, levels.name, scales.name))
        return y

    def _kept(self, module: str) -> bool:
        """Whether it is not rounded. Raises `ScalesError` for an activation whose range nobody knows."""
        scales = self.calibration.scales if self.calibration else None
        kept = scales is not None and module in scales.kept
        if self.precision.eight_bits and not kept and not (scales and module in scales.steps):
            raise ScalesError(
                f"no scale for {module} of graph {self.g.name}",
                expected=f"one for every product of a graph in {self.precision.name}",
                next_step="Pass --scales scales.json, or --scan CLIP to make some.",
            )
        return kept

    def _product_with_stored(self, x: Value, name: str) -> Value | None:
        """x times a matrix that another graph stored, which is not read again; None: none did."""
        module = name.removesuffix(".weight")
        dtype, eight_bits = self.product_type(module), self.precision.eight_bits
        x = self.g.cast(x, dtype)
        if four_bits := self._stored_int4(name, dtype) if self.precision.int4_block else None:
            return self._int4_product(self._lengthened(x, self.g.data.lengthened[name]), *four_bits)
        if stored := self._stored_eight_bits(name, dtype, eight_bits) if eight_bits else None:
            return self._rounded_product(x, module, *stored)
        matrix = self.g.stored(name, dtype)
        return None if matrix is None else self.g.op("MatMul", x, matrix)

    def _stored_int4(self, name: str, dtype: DType) -> tuple[Value, Value] | None:
        """The other graph's levels; its scales too, or the same in this graph's type."""
        scale = self.g.stored_as(f"{name}.scale", dtype)
        levels = self.g.stored_int4(name, scale) if scale else None
        return (levels, scale) if levels and scale else None

    def _stored_eight_bits(self, name: str, dtype: DType, format: EightBits) -> tuple[Value, Value] | None:
        scale = self.g.stored_as(f"{name}.scale", dtype)
        levels = self.g.stored_eight_bits(name, format, scale) if scale else None
        return (levels, scale) if levels and scale else None

    def compute(self, name: str) -> Value:
        """The weight of that name, in the type of matrix products."""
        return self._parameter(name, self.precision.compute)

    def _parameter(self, name: str, dtype: DType) -> Value:
        """The weight of that name as the checkpoint has it, read where no other graph stored it."""
        return self.g.stored(name, dtype) or self.g.weight(name, stored_as(self.read(name), dtype))

    def weight(self, name: str, array: Array) -> Value:
        return self.g.weight(name, stored_as(array, self.precision.compute))

    def layer_norm(self, x: Value, name: str, eps: float) -> Value:
        """In `sensitive`; the result too."""
        scale, bias = (self._parameter(f"{name}.{leaf}", DType.FLOAT32) for leaf in ("weight", "bias"))
        return self.g.op("LayerNormalization", self.sensitive(x), scale, bias, axis=-1, epsilon=eps)

    def rms_norm(self, x: Value, name: str, eps: float) -> Value:
        """In `sensitive`, as one operation from opset 23 on; the result too."""
        scale, x = self._parameter(f"{name}.weight", DType.FLOAT32), self.sensitive(x)
        if self.g.opset >= OPSET_RMS_NORM:
            return self.g.op("RMSNormalization", x, scale, axis=-1, epsilon=eps)
        square = self.g.op("ReduceMean", self.g.op("Mul", x, x), self.g.constant([-1]), keepdims=1)
        size = self.g.op("Sqrt", self.g.op("Add", square, self.g.constant(eps, x.dtype)))
        return self.g.op("Mul", self.g.op("Div", x, size), scale)

    def softmax(self, x: Value, dtype: DType | None = None) -> Value:
        """Over the last axis, in `sensitive`; the result in `dtype`, or `compute`."""
        return self.g.cast(self.g.op("Softmax", self.sensitive(x), axis=-1), dtype or self.precision.compute)

    def add(self, x: Value, y: Value, name: str = "") -> Value:
        """A residual sum: in `compute` where the plan says that one of this name may, else in `sensitive`."""
        narrow = name in self.plan.narrow_sums
        dtype = self.precision.compute if narrow else self.precision.sensitive
        return self.g.op("Add", self.g.cast(x, dtype), self.g.cast(y, dtype))

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

    def slice(self, x: Value, start: int | Value, end: int | Value | None, *, axis: int) -> Value:
        """x[start:end] along one axis; either may be a value [1] of the graph, no `end` is all the rest."""
        stop, begin = (
            at if isinstance(at, Value) else self.g.constant([np.iinfo(np.int64).max if at is None else at])
            for at in (end, start)
        )
        return self.g.op("Slice", x, begin, stop, self.g.constant([axis]))

    def last(self, x: Value, rows: int, *, axis: int = 1) -> Value:
        """The last `rows` along an axis."""
        return self.slice(x, -rows, None, axis=axis)

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

    def join_heads(self, x: Value, width: int) -> Value:
        """[B, heads, R, d] -> [B, R, heads*d], which is `width`."""
        return self.reshape(self.transpose(x, 0, 2, 1, 3), 0, 0, width)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        heads: int,
        head_dim: int,
        *,
        name: str,
        bias: Value | None = None,
        scaled: bool = False,
    ) -> Value:
        """Rows q [B, R, H] look at k, v [B, K, H] -> [B, R, H].

        Args:
            bias: added to the scores. Without one, q, k and v have as many entries B.
            scaled: q was divided by sqrt(head_dim) already.
        """
        dtype = self.product_type(name)
        q, k, v = (self.g.cast(rows, dtype) for rows in (q, k, v))
        of_heads = self.split_heads(q if scaled else self.scale(q, head_dim**-0.5), heads)
        values = self.split_heads(v, heads)
        keys = self.transpose(self.reshape(k, 0, 0, heads, -1), 0, 2, 3, 1)
        scores = self.g.op("MatMul", of_heads, keys)
        if bias is not None:
            scores = self.add(scores, bias)
        mixed = self.join_heads(self.g.op("MatMul", self.softmax(scores, dtype), values), heads * head_dim)
        if bias is None and dtype is DType.FLOAT32:
            scale = 1.0 if scaled else head_dim**-0.5
            self.g.remark(mixed, Attention(q.name, k.name, v.name, heads, scale))
        return mixed

    def microsoft(self, kind: str, *inputs: Value | None, outputs: int, **attributes: Any) -> list[Value]:
        """An operator of ONNX Runtime's own."""
        return self.g.ops(kind, *inputs, outputs=outputs, domain=MICROSOFT, **attributes)
