"""Writes one ONNX graph node by node, its weights straight to a data file beside it.

    g = GraphBuilder("content", contract, folder)
    x = g.input("features")
    g.output("content_tokens", linear(g, x, weights, "mm_projector"))
    g.save()

A weight is on disk and out of memory as soon as it is declared, so a 13-billion
parameter graph costs one tensor of memory. Several graphs may share one `WeightFile`.
Knows ONNX; knows nothing of layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from llamavid.contract import DType, GraphContract, TensorSpec
from llamavid.export.weights import WeightFile
from llamavid.formats.eight_bits import EightBits
from llamavid.remarks import KEY, Remark, written_remark

OPSET = 21  # the first with INT4 and block-wise DequantizeLinear; what TensorRT 10.3 reads
MICROSOFT = "com.microsoft"
_IR_VERSION = 11

EIGHT_BIT_TYPE: dict[EightBits, np.dtype] = {
    EightBits.INT8: np.dtype(np.int8),
    EightBits.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
}
ONNX_TYPE = {
    DType.FLOAT32: TensorProto.FLOAT,
    DType.FLOAT16: TensorProto.FLOAT16,
    DType.BFLOAT16: TensorProto.BFLOAT16,
    DType.INT64: TensorProto.INT64,
    DType.INT32: TensorProto.INT32,
    DType.INT8: TensorProto.INT8,
}


@dataclass(frozen=True)
class Value:
    """An edge of the graph. Carries its type, so that casts are written only where they are needed."""

    name: str
    dtype: DType


class GraphBuilder:
    """One graph under construction. Must be closed: use it in a `with` block."""

    emulates = False  # half precision, by float32: see `llamavid.export.emulation`

    def __init__(
        self,
        name: str,
        contract: GraphContract,
        folder: Path,
        *,
        opset: int = OPSET,
        weights: WeightFile | None = None,
    ) -> None:
        """`weights`, in `folder`, may be shared with other graphs, and stays open; None: the graph's own."""
        self.name, self.opset = name, opset
        self.file = folder / f"{name}.onnx"
        self._contract = contract
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._remarks: dict[str, Remark] = {}  # by value
        self._scope = ""
        self._serial = 0
        self.data = weights or WeightFile(folder / f"{name}.onnx.data")
        self._owns_data = weights is None

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._owns_data:
            self.data.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes written inside begin with it: a profile or a bisection reads like the model."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        yield
        self._scope = outer

    def input(self, name: str) -> Value:
        """The contract's input of that name."""
        return Value(name, self._contract.spec(name).dtype)

    def op(
        self,
        kind: str,
        *inputs: Value | None,
        dtype: DType | None = None,
        domain: str = "",
        result: str | None = None,
        **attributes: Any,
    ) -> Value:
        """One node of one output, of the first input's type unless `dtype` says otherwise.

        `result` names what it gives: with an output's name it is that output itself, no Identity between.
        """
        names = [result] if result else None
        return self.ops(kind, *inputs, outputs=1, dtype=dtype, domain=domain, results=names, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: Value | None,
        outputs: int,
        dtype: DType | None = None,
        domain: str = "",
        results: list[str] | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """One node of several outputs, which `results` may name."""
        self._serial += 1
        name = f"{self._scope}{kind}_{self._serial}"
        results = results or [f"{name}:{i}" for i in range(outputs)]
        names = [value.name if value else "" for value in inputs]
        self._nodes.append(helper.make_node(kind, names, results, name=name, domain=domain, **attributes))
        kept = dtype or next(value.dtype for value in inputs if value)
        return [Value(result, kept) for result in results]

    def cast(self, value: Value, dtype: DType) -> Value:
        """`value` as `dtype`; no node when it is that already."""
        return value if value.dtype is dtype else self.op("Cast", value, dtype=dtype, to=ONNX_TYPE[dtype])

    def constant(self, values: Any, dtype: DType = DType.INT64) -> Value:
        """A small constant, kept in the graph itself; equal ones are one."""
        array = stored_as(np.asarray(values), dtype)
        key = (dtype.value, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._weights[name] = onnx.numpy_helper.from_array(array, name)
            self._constants[key] = Value(name, dtype)
        return self._constants[key]

    def weight(self, name: str, array: npt.NDArray[Any]) -> Value:
        """A weight, written to the data file now."""
        dtype = DType(array.dtype.name)
        return Value(self._store(name, np.ascontiguousarray(array), ONNX_TYPE[dtype], array.shape), dtype)

    def int4_weight(
        self, name: str, packed: npt.NDArray[np.uint8], shape: tuple[int, ...], scale: Value
    ) -> Value:
        """Four-bit values of `shape`, two a byte, low nibble first; typed as what dequantizing them gives."""
        return Value(self._store(name, packed, TensorProto.INT4, shape), scale.dtype)

    def eight_bit_weight(
        self, name: str, levels: npt.NDArray[np.float32], format: EightBits, scale: Value
    ) -> Value:
        """Levels of that format, stored as such; typed as what dequantizing them gives."""
        stored = np.ascontiguousarray(levels.astype(EIGHT_BIT_TYPE[format]))
        onnx_type = helper.np_dtype_to_tensor_dtype(stored.dtype)
        return Value(self._store(name, stored, onnx_type, stored.shape), scale.dtype)

    def zero_point(self, format: EightBits, scale: Value, shape: tuple[int, ...] = ()) -> Value:
        """Zeros of that format: they tell QuantizeLinear, whose default is uint8, its type."""
        key = (format.value, shape, b"")
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            zeros = np.zeros(shape, EIGHT_BIT_TYPE[format])
            self._weights[name] = onnx.numpy_helper.from_array(zeros, name)
            self._constants[key] = Value(name, scale.dtype)
        return self._constants[key]

    def stored(self, name: str, dtype: DType) -> Value | None:
        """The weight of that name and type, where the data file has it already: it need not be read again."""
        return self._refer(name, ONNX_TYPE[dtype], dtype)

    def stored_as(self, name: str, dtype: DType) -> Value | None:
        """The same, converted where the data file has it in float32."""
        wide = self.data.find(name, ONNX_TYPE[DType.FLOAT32])
        if wide is None or dtype is DType.FLOAT32:
            return self.stored(name, dtype)
        return self.weight(name, stored_as(self.data.read(wide, np.dtype(np.float32)), dtype))

    def stored_int4(self, name: str, scale: Value) -> Value | None:
        """Four-bit values that the data file has already."""
        return self._refer(name, TensorProto.INT4, scale.dtype)

    def stored_eight_bits(self, name: str, format: EightBits, scale: Value) -> Value | None:
        """Eight-bit values that the data file has already."""
        onnx_type = helper.np_dtype_to_tensor_dtype(EIGHT_BIT_TYPE[format])
        return self._refer(name, onnx_type, scale.dtype)

    def _refer(self, name: str, onnx_type: int, dtype: DType) -> Value | None:
        stored = self.data.find(name, onnx_type)
        if stored is None:
            return None
        self._weights[name] = self.data.reference(stored)
        return Value(name, dtype)

    def _store(self, name: str, array: npt.NDArray[Any], onnx_type: int, shape: tuple[int, ...]) -> str:
        self._weights[name] = self.data.reference(self.data.store(name, array, onnx_type, shape))
        return name

    def remark(self, value: Value, remark: Remark) -> None:
        """On the node that gives `value`, the last one written; nothing that is computed changes."""
        node = self._nodes[-1]
        assert value.name in node.output, f"{value.name} is not the last that was made"
        node.metadata_props.add(key=KEY, value=written_remark(remark))
        self._remarks[value.name] = remark

    def remark_on(self, value: Value) -> Remark | None:
        return self._remarks.get(value.name)

    def mark(self, value: Value, name: str) -> Value:
        """Gives an inner value a name of its own, so that a test or a bisection can ask for it."""
        self._nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        return Value(name, value.dtype)

    def output(self, name: str, value: Value) -> None:
        """`value` leaves the graph as the contract's output of that name, cast to its type."""
        self.mark(self.cast(value, self._contract.spec(name).dtype), name)

    def save(self) -> Path:
        """Writes and checks the graph. Raises `onnx.checker.ValidationError` on a mistake of ours."""
        self.data.flush()
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [_value_info(spec) for spec in self._contract.inputs],
            [_value_info(spec) for spec in self._contract.outputs],
            list(self._weights.values()),
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="llamavid"
        )
        self.file.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(self.file))
        return self.file


def stored_as(array: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    """`array` in the element type that a graph stores: bfloat16 as itself, rounded to nearest even."""
    return array.astype(ml_dtypes.bfloat16 if dtype is DType.BFLOAT16 else dtype.numpy)


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ONNX_TYPE[spec.dtype], spec.shape)
