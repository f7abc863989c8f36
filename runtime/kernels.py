"""Faster operators in the place of standard ones, as a graph is loaded.

    text = with_kernels(file.read_bytes(), Kernels.BEST)

An attention becomes ONNX Runtime's MultiHeadAttention, which takes rows as the projections give them and
leaves scores in the cache: no transposed copies. An int8 product becomes our own operator where the
processor runs it (`native/src/int8_product.h`), with its bias, the GELU behind it and the rounding for the
next product; elsewhere ONNX Runtime's MatMulIntegerToFloat, to which it fuses Q/DQ by itself, but without
the bias. A file stays what every other reader understands; here nodes that carry a remark
(`llamavid.remarks`) are replaced, and what only they needed is dropped.

Note [Fields]
    Numbers of fields, from onnx.proto, which never change: ModelProto.graph 7, .opset_import 8;
    GraphProto.node 1, .initializer 5, .output 12; ValueInfoProto.name 1; TensorProto.data_type 2, .name 8,
    .raw_data 9; OperatorSetIdProto.domain 1, .version 2.

Note [Signs]
    x86 multiplies unsigned by signed levels, so activations get 128 more and a zero point of 128, as ONNX
    Runtime does with Q/DQ itself there; elsewhere they stay signed, and it is 0. The same levels.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from enum import Enum

from llamavid.protobuf import Field, bytes_field, fields, number_field, text_field, written
from llamavid.remarks import KEY, Attention, Int8Product, remark_of
from llamavid.runtime.implementation import native_or_none
from llamavid.runtime.onnx_nodes import Node, float_attribute, int_attribute, node_bytes, node_of


class Kernels(Enum):
    """Whose operators are put in."""

    STANDARD = "none"
    ONNX_RUNTIME = "ONNX Runtime's"
    BEST = "ours where this processor runs them, else ONNX Runtime's"


_OURS, _MICROSOFT = "llamavid", "com.microsoft"
_GRAPH, _OPSET = 7, 8
_NODE, _WEIGHT, _GRAPH_OUTPUT = 1, 5, 12
_ZERO = "llamavid.zero point"
_UINT8, _INT8 = (2, b"\x80"), (3, b"\x00")  # TensorProto.DataType, and the zero point in it
_LEVELS = _UINT8 if platform.machine() in ("x86_64", "AMD64") else _INT8  # Note [Signs]


def with_kernels(model: bytes, kernels: Kernels = Kernels.BEST) -> bytes:
    """The same `onnx.ModelProto`; as it is where nothing in it carries a remark.

    Raises:
        ValueError, TypeError: it is no model, or a remark is not one of ours.
    """
    if kernels is Kernels.STANDARD or KEY.encode() not in model:
        return model
    ours = kernels is Kernels.BEST and our_library() is not None
    opset = bytes_field(_OPSET, written([text_field(1, _OURS), number_field(2, 1)]))
    return written(
        [
            *(
                Field(field.number, field.kind, _graph(field.data, ours)) if field.number == _GRAPH else field
                for field in fields(model)
            ),
            *([opset] if ours else []),
        ]
    )


def our_library() -> str | None:
    """Where our operators are, if this processor runs them: what ONNX Runtime's session is told to load."""
    native = native_or_none()
    return native.__file__ if native is not None and native.multiplies_int8() else None


def _graph(graph: bytes, ours: bool) -> bytes:
    parts = list(fields(graph))
    outputs = {_name_of(part.data) for part in parts if part.number == _GRAPH_OUTPUT}
    nodes = _replaced((node_of(part.data) for part in parts if part.number == _NODE), ours)
    nodes = _needed(nodes, outputs)
    if ours:
        nodes = _joined(nodes, outputs)
    zero = [bytes_field(_WEIGHT, _zero_point())] if any(_ZERO in node.inputs for node in nodes) else []
    return written(
        [
            *(bytes_field(_NODE, node_bytes(node)) for node in nodes),
            *(part for part in parts if part.number != _NODE),
            *zero,
        ]
    )


def _replaced(nodes: Iterable[Node], ours: bool) -> Sequence[Node]:
    """Where a node carries a remark, what has its output and runs as a kernel; else the node."""
    new: list[Node] = []
    rounded: set[str] = set()
    for node in nodes:
        note = node.note(KEY)
        remark = remark_of(note) if note is not None else None
        if isinstance(remark, Attention):
            new.append(_attention(remark, node))
        elif isinstance(remark, Int8Product):
            levels = f"{remark.x} in levels of {remark.step}"
            if levels not in rounded:
                rounded.add(levels)
                new.append(Node("QuantizeLinear", (remark.x, remark.step, _ZERO), (levels,), name=levels))
            new.append((_our_product if ours else _microsoft_product)(remark, levels, node))
        else:
            new.append(node)
    return new


def _needed(nodes: Sequence[Node], outputs: Iterable[str]) -> Sequence[Node]:
    needed, kept = set(outputs), []
    for node in reversed(nodes):  # a node comes after those that it takes from
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _joined(nodes: Sequence[Node], outputs: Collection[str]) -> Sequence[Node]:
    """Our products with the GELU and the rounding that alone take what they give."""
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)

    def only_user(node: Node) -> Node | None:
        (value,) = node.outputs
        return users[value][0] if value not in outputs and len(users[value]) == 1 else None

    new: list[Node] = []
    gone: set[str] = set()  # values of nodes that a product took in
    for node in nodes:
        if node.outputs[0] in gone:
            continue
        if (node.domain, node.kind) == (_OURS, "Int8Product"):
            after = only_user(node)
            if after and after.kind == "Gelu" and not after.attributes:
                node = replace(node, outputs=after.outputs, attributes=(int_attribute("gelu", 1),))
                gone.update(node.outputs)
                after = only_user(node)
            if after and after.kind == "QuantizeLinear" and after.inputs[2] == _ZERO:
                inputs = (*node.inputs[:4], after.inputs[1], *node.inputs[4:])
                node = replace(node, kind="Int8ProductRounded", inputs=inputs, outputs=after.outputs)
                gone.update(node.outputs)
        new.append(node)
    return new


def _attention(attention: Attention, node: Node) -> Node:
    attributes = (int_attribute("num_heads", attention.heads), float_attribute("scale", attention.scale))
    inputs = (attention.q, attention.k, attention.v)
    return Node("MultiHeadAttention", inputs, node.outputs, _MICROSOFT, node.name, attributes)


def _microsoft_product(product: Int8Product, levels: str, node: Node) -> Node:
    factors = (levels, product.levels, product.step, product.scales, _ZERO)
    bias = ("", product.bias) if product.bias else ()  # between them the weight's zero point, which is 0
    return Node("MatMulIntegerToFloat", (*factors, *bias), node.outputs, _MICROSOFT, node.name)


def _our_product(product: Int8Product, levels: str, node: Node) -> Node:
    bias = (product.bias,) if product.bias else ()
    inputs = (levels, product.levels, product.step, product.scales, *bias)
    return Node("Int8Product", inputs, node.outputs, _OURS, node.name, (int_attribute("gelu", 0),))


def _zero_point() -> bytes:
    kind, value = _LEVELS
    return written([number_field(2, kind), text_field(8, _ZERO), bytes_field(9, value)])


def _name_of(value: bytes) -> str:
    return next(_texts(value, 1))


def _texts(message: bytes, number: int) -> Iterator[str]:
    return (field.data.decode() for field in fields(message) if field.number == number)
