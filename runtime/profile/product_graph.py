"""One matrix product as an ONNX file's bytes, to measure what a machine can do: A [n, n] times a constant.

Written by hand, field by field of onnx.proto3, since a device has no onnx package. The constant is random;
nobody reads the product.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from llamavid.protobuf import bytes_field, number_field, text_field, written
from llamavid.runtime.joined_nodes import OURS
from llamavid.runtime.onnx_nodes import Node, int_attribute, node_bytes

OUR_INT8 = "our int8"
_IR_VERSION, _OPSET = 10, 21
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10, "fp8": 17}  # TensorProto.DataType
_SEED = 0


def product_graph(dtype: str, n: int) -> tuple[bytes, npt.NDArray[np.generic]]:
    """The file and its input `a`.

    Args:
        dtype: float32 or float16; int8 is uint8 times int8 into int32, the product of dynamic int8;
            OUR_INT8 the same into float32 by our own operator.
    """
    random = np.random.default_rng(_SEED)
    if dtype in ("int8", OUR_INT8):
        a: npt.NDArray[np.generic] = random.integers(0, 255, (n, n), np.uint8)
        b: npt.NDArray[np.generic] = random.integers(-127, 127, (n, n), np.int8)
        node, result = _node("MatMulInteger", ("a", "b"), "c"), "int32"
    else:
        a, b = (random.normal(0, 0.02, (n, n)).astype(dtype) for _ in range(2))
        node, result = _node("MatMul", ("a", "b"), "c"), dtype
    constants = [_tensor("b", b.shape, _TYPES[b.dtype.name], b.tobytes())]
    if dtype == OUR_INT8:
        node, result = node_bytes(_our_product()), "float32"
        constants += (_ones("step", ()), _ones("scales", (n,)))
    given, made = _value("a", _TYPES[a.dtype.name], a.shape), _value("c", _TYPES[result], a.shape)
    model = _model((node,), constants, given, made)
    return (model + _bytes(8, _text(1, OURS) + _number(2, 1)) if dtype == OUR_INT8 else model), a


def _our_product() -> Node:
    return Node(
        "Int8Product", ("a", "b", "step", "scales"), ("c",), OURS, attributes=(int_attribute("gelu", 0),)
    )


def _ones(name: str, shape: tuple[int, ...]) -> bytes:
    return _tensor(name, shape, _TYPES["float32"], np.ones(shape, np.float32).tobytes())


def quantized_product_graph(precision: str, n: int) -> bytes:
    """As the exporter writes int8 and fp8 for TensorRT: both sides quantized, dequantized to float16.

    Args:
        precision: int8 or fp8 (e4m3fn).
    """
    half, kind = _TYPES["float16"], _TYPES[precision]
    levels = np.random.default_rng(_SEED).integers(1, 100, (n, n), np.uint8)  # numbers of either type
    nodes = (
        _node("QuantizeLinear", ("a", "scale", "zero"), "quantized"),
        _node("DequantizeLinear", ("quantized", "scale", "zero"), "left"),
        _node("DequantizeLinear", ("b", "scale", "zero"), "right"),
        _node("MatMul", ("left", "right"), "c"),
    )
    constants = (
        _tensor("scale", (), half, np.float16(0.01).tobytes()),
        _tensor("zero", (), kind, b"\0"),
        _tensor("b", (n, n), kind, levels.tobytes()),
    )
    return _model(nodes, constants, _value("a", half, (n, n)), _value("c", half, (n, n)))


def _model(nodes: Iterable[bytes], constants: Iterable[bytes], given: bytes, made: bytes) -> bytes:
    graph = b"".join(_bytes(1, node) for node in nodes) + _text(2, "product")
    graph += b"".join(_bytes(5, constant) for constant in constants)
    graph += _bytes(11, given) + _bytes(12, made)
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, _OPSET))


def _node(operation: str, inputs: Iterable[str], output: str) -> bytes:
    return node_bytes(Node(operation, tuple(inputs), (output,), name=f"{operation} {output}"))


def _tensor(name: str, shape: tuple[int, ...], kind: int, data: bytes) -> bytes:
    dims = b"".join(_number(1, size) for size in shape)
    return dims + _number(2, kind) + _text(8, name) + _bytes(9, data)


def _value(name: str, kind: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, dims)))


def _number(field: int, value: int) -> bytes:
    return written([number_field(field, value)])


def _bytes(field: int, content: bytes) -> bytes:
    return written([bytes_field(field, content)])


def _text(field: int, words: str) -> bytes:
    return written([text_field(field, words)])
