"""Faster operators in the place of standard ones, as a graph is loaded.

    text = with_kernels(file.read_bytes(), Kernels.BEST)

Attentions and products of int8 and int4 weights become operators of our own where the processor runs them
(`native/src/attention.h`, `int8_product.h`, `int4_product.h`), which take in their biases, GELU and the
rounding for the next product; elsewhere ONNX Runtime's. Its MultiHeadAttention takes rows as the projections
give them and leaves scores in the cache; its MatMulIntegerToFloat is what it fuses Q/DQ to by itself, but
without the bias, its MatMulNBits what it fuses int4 weights to. A file stays what every other reader
understands; here nodes that carry a remark (`llamavid.remarks`) are replaced, and what only they needed is
dropped.

Note [Fields]
    Numbers of fields, from onnx.proto, which never change: ModelProto.graph 7, .opset_import 8;
    GraphProto.node 1, .initializer 5, .output 12; ValueInfoProto.name 1; TensorProto.data_type 2, .name 8,
    .raw_data 9, .dims 1; OperatorSetIdProto.domain 1, .version 2.

Note [Signs]
    x86 multiplies unsigned by signed levels, so activations get 128 more and a zero point of 128, as ONNX
    Runtime does with Q/DQ itself there; elsewhere they stay signed, and it is 0. The same levels.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import Enum

from llamavid.protobuf import Field, bytes_field, fields, number_field, text_field, written
from llamavid.remarks import KEY, Attention, Int4Product, Int8Product, remark_of
from llamavid.runtime.implementation import native_or_none
from llamavid.runtime.int4_kernels import as_bytes, int4_product, takeable
from llamavid.runtime.joined_nodes import OURS, ZERO, joined
from llamavid.runtime.onnx_nodes import Node, float_attribute, int_attribute, node_bytes, node_of


class Kernels(Enum):
    """Whose operators are put in."""

    STANDARD = "none"
    ONNX_RUNTIME = "ONNX Runtime's"
    BEST = "ours where this processor runs them, else ONNX Runtime's"


_MICROSOFT = "com.microsoft"
_GRAPH, _OPSET = 7, 8
_NODE, _WEIGHT, _GRAPH_OUTPUT = 1, 5, 12
_UINT8, _INT8 = (2, b"\x80"), (3, b"\x00")  # TensorProto.DataType, and the zero point in it
_LEVELS = _UINT8 if platform.machine() in ("x86_64", "AMD64") else _INT8  # Note [Signs]


def with_kernels(model: bytes, kernels: Kernels = Kernels.BEST, *, exact_int4: bool = False) -> bytes:
    """The same `onnx.ModelProto`; as it is where nothing in it carries a remark.

    exact_int4: products of int4 weights stay, because our operator rounds activations.

    Raises:
        ValueError, TypeError: it is no model, or a remark is not one of ours.
    """
    if kernels is Kernels.STANDARD or KEY.encode() not in model:
        return model
    ours = kernels is Kernels.BEST and our_library() is not None
    opset = bytes_field(_OPSET, written([text_field(1, OURS), number_field(2, 1)]))
    return written(
        [
            *(
                Field(field.number, field.kind, _graph(field.data, ours, exact_int4))
                if field.number == _GRAPH
                else field
                for field in fields(model)
            ),
            *([opset] if ours else []),
        ]
    )


def our_library() -> str | None:
    """Where our operators are, if this processor runs them: what ONNX Runtime's session is told to load."""
    native = native_or_none()
    return native.__file__ if native is not None and native.runs_operators() else None


def _graph(graph: bytes, ours: bool, exact_int4: bool) -> bytes:
    parts = list(fields(graph))
    outputs = {_name_of(part.data) for part in parts if part.number == _GRAPH_OUTPUT}
    given = [node_of(part.data) for part in parts if part.number == _NODE]
    weights = [part.data for part in parts if part.number == _WEIGHT]
    four_bits = takeable(given, weights, outputs) if ours and not exact_int4 else set()
    nodes = _needed(_replaced(given, ours, four_bits), outputs)
    if ours:
        nodes = _needed(joined(nodes, outputs, _vectors(parts)), outputs)
    zero = [bytes_field(_WEIGHT, _zero_point())] if any(ZERO in node.inputs for node in nodes) else []
    return written(
        [
            *(bytes_field(_NODE, node_bytes(node)) for node in nodes),
            *(bytes_field(_WEIGHT, as_bytes(weight, four_bits)) for weight in weights),
            *(part for part in parts if part.number not in (_NODE, _WEIGHT)),
            *zero,
        ]
    )


def _replaced(nodes: Iterable[Node], ours: bool, four_bits: Collection[str]) -> Sequence[Node]:
    """Where a node carries a remark, what has its output and runs as a kernel; else the node."""
    new: list[Node] = []
    rounded: set[str] = set()
    for node in nodes:
        note = node.note(KEY)
        remark = remark_of(note) if note is not None else None
        if isinstance(remark, Attention):
            new.append((_our_attention if ours else _microsoft_attention)(remark, node))
        elif isinstance(remark, Int8Product):
            levels = f"{remark.x} in levels of {remark.step}"
            if levels not in rounded:
                rounded.add(levels)
                new.append(Node("QuantizeLinear", (remark.x, remark.step, ZERO), (levels,), name=levels))
            new.append((_our_product if ours else _microsoft_product)(remark, levels, node))
        elif isinstance(remark, Int4Product) and remark.levels in four_bits:
            new.append(int4_product(remark, node))
        else:
            new.append(node)
    return new


def _needed(nodes: Sequence[Node], outputs: Iterable[str]) -> Sequence[Node]:
    needed, kept = set(outputs), []
    for node in reversed(nodes):  # a node comes after those that it takes from
        if needed.intersection(node.outputs):
            needed.update(filter(None, node.inputs))
            kept.append(node)
    return kept[::-1]


def _our_attention(attention: Attention, node: Node) -> Node:
    attributes = (int_attribute("heads", attention.heads), float_attribute("scale", attention.scale))
    inputs = (attention.q, attention.k, attention.v)
    return Node("Attention", inputs, node.outputs, OURS, node.name, attributes)


def _microsoft_attention(attention: Attention, node: Node) -> Node:
    attributes = (int_attribute("num_heads", attention.heads), float_attribute("scale", attention.scale))
    inputs = (attention.q, attention.k, attention.v)
    return Node("MultiHeadAttention", inputs, node.outputs, _MICROSOFT, node.name, attributes)


def _microsoft_product(product: Int8Product, levels: str, node: Node) -> Node:
    factors = (levels, product.levels, product.step, product.scales, ZERO)
    bias = ("", product.bias) if product.bias else ()  # between them the weight's zero point, which is 0
    return Node("MatMulIntegerToFloat", (*factors, *bias), node.outputs, _MICROSOFT, node.name)


def _our_product(product: Int8Product, levels: str, node: Node) -> Node:
    bias = (product.bias,) if product.bias else ()
    inputs = (levels, product.levels, product.step, product.scales, *bias)
    return Node("Int8Product", inputs, node.outputs, OURS, node.name, (int_attribute("gelu", 0),))


def _vectors(parts: Iterable[Field]) -> set[str]:
    """Weights of one dimension."""
    weights = (part.data for part in parts if part.number == _WEIGHT)
    return {next(_texts(weight, 8)) for weight in weights if len(_dimensions(weight)) == 1}


def _dimensions(weight: bytes) -> Sequence[bytes]:
    return [field.data for field in fields(weight) if field.number == 1]


def _zero_point() -> bytes:
    kind, value = _LEVELS
    return written([number_field(2, kind), text_field(8, ZERO), bytes_field(9, value)])


def _name_of(value: bytes) -> str:
    return next(_texts(value, 1))


def _texts(message: bytes, number: int) -> Iterator[str]:
    return (field.data.decode() for field in fields(message) if field.number == number)
