"""ONNX Runtime's own operators in the place of standard ones, as a graph is loaded.

    text = with_kernels(file.read_bytes())

An attention becomes com.microsoft MultiHeadAttention, which takes rows as the projections give them and
leaves scores in the cache: no transposed copies. An int8 product becomes MatMulIntegerToFloat, to which ONNX
Runtime fuses Q/DQ by itself, but without the bias. A file stays what every other reader understands; here
nodes that carry a remark (`llamavid.remarks`) are replaced, and what only they needed is dropped. Takes and
gives the bytes of an `onnx.ModelProto`, and needs no `onnx`.

Note [Fields]
    Numbers of fields, from onnx.proto, which never change: ModelProto.graph 7; GraphProto.node 1,
    .initializer 5, .output 12; NodeProto.input 1, .output 2, .name 3, .op_type 4, .attribute 5, .domain 7,
    .metadata_props 9; AttributeProto.name 1, .f 2, .i 3, .type 20 (FLOAT 1, INT 2); StringStringEntryProto
    .key 1, .value 2; ValueInfoProto.name 1; TensorProto.data_type 2, .name 8, .raw_data 9.

Note [Signs]
    x86 multiplies unsigned by signed levels, so activations get 128 more and a zero point of 128, as ONNX
    Runtime does with Q/DQ itself there; elsewhere they stay signed, and it is 0. The same levels.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable, Iterator, Sequence

from llamavid.protobuf import SHORT, Field, bytes_field, fields, number_field, text_field, written
from llamavid.remarks import KEY, Attention, Int8Product, remark_of

_GRAPH, _NODE, _WEIGHT, _GRAPH_OUTPUT = 7, 1, 5, 12
_INPUT, _OUTPUT, _NAME, _OP_TYPE, _ATTRIBUTE, _DOMAIN, _METADATA = 1, 2, 3, 4, 5, 7, 9
_FLOAT, _INT = 1, 2
_ZERO = "llamavid.zero point"
_UINT8, _INT8 = (2, b"\x80"), (3, b"\x00")  # TensorProto.DataType, and the zero point in it
_LEVELS = _UINT8 if platform.machine() in ("x86_64", "AMD64") else _INT8  # Note [Signs]


def with_kernels(model: bytes) -> bytes:
    """The same model; as it is where nothing in it carries a remark.

    Raises:
        ValueError, TypeError: it is no model, or a remark is not one of ours.
    """
    if KEY.encode() not in model:
        return model
    return written(
        Field(field.number, field.kind, _graph(field.data)) if field.number == _GRAPH else field
        for field in fields(model)
    )


def _graph(graph: bytes) -> bytes:
    parts = list(fields(graph))
    needed = {_texts(part.data, 1)[0] for part in parts if part.number == _GRAPH_OUTPUT}
    kept: list[Field] = []
    for part in reversed(parts):  # a node comes after those that it takes from
        if part.number != _NODE:
            kept.append(part)
        elif needed.intersection(_texts(part.data, _OUTPUT)):
            nodes = _replaced(part.data)
            kept += (bytes_field(_NODE, node) for node in reversed(nodes))
            needed.update(name for node in nodes for name in _texts(node, _INPUT))
    if _ZERO in needed:
        kept.append(bytes_field(_WEIGHT, _zero_point()))
    return written(reversed(kept))


def _replaced(node: bytes) -> Sequence[bytes]:
    """Where the node carries a remark, what has its output and runs as a kernel; else the node."""
    for entry in _of(node, _METADATA):
        if _texts(entry, 1) == [KEY]:
            remark = remark_of(_texts(entry, 2)[0])
            (name,), (output,) = _texts(node, _NAME), _texts(node, _OUTPUT)
            if isinstance(remark, Attention):
                return [_attention(remark, name, output)]
            return _product(remark, name, output)
    return [node]


def _attention(attention: Attention, name: str, output: str) -> bytes:
    scale = Field(2, SHORT, struct.pack("<f", attention.scale))
    heads = number_field(3, attention.heads)
    return _node(
        "MultiHeadAttention",
        (attention.q, attention.k, attention.v),
        output,
        name,
        _attribute("num_heads", heads, _INT),
        _attribute("scale", scale, _FLOAT),
        text_field(_DOMAIN, "com.microsoft"),
    )


def _product(product: Int8Product, name: str, output: str) -> Sequence[bytes]:
    """Note [Signs]. ONNX Runtime makes one of QuantizeLinear nodes that are equal."""
    levels = f"{output} levels"
    factors = (levels, product.levels, product.step, product.scales, _ZERO)
    bias = ("", product.bias) if product.bias else ()  # between them the weight's zero point, which is 0
    domain = text_field(_DOMAIN, "com.microsoft")
    return (
        _node("QuantizeLinear", (product.x, product.step, _ZERO), levels, f"{name} levels"),
        _node("MatMulIntegerToFloat", (*factors, *bias), output, name, domain),
    )


def _node(kind: str, inputs: Iterable[str], output: str, name: str, *others: Field) -> bytes:
    return written(
        [
            *(text_field(_INPUT, value) for value in inputs),
            text_field(_OUTPUT, output),
            text_field(_NAME, name),
            text_field(_OP_TYPE, kind),
            *others,
        ]
    )


def _attribute(name: str, value: Field, kind: int) -> Field:
    return bytes_field(_ATTRIBUTE, written([text_field(1, name), value, number_field(20, kind)]))


def _zero_point() -> bytes:
    kind, value = _LEVELS
    return written([number_field(2, kind), text_field(8, _ZERO), bytes_field(9, value)])


def _of(message: bytes, number: int) -> Iterator[bytes]:
    return (field.data for field in fields(message) if field.number == number)


def _texts(message: bytes, number: int) -> list[str]:
    return [data.decode() for data in _of(message, number)]
