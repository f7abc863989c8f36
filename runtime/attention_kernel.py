"""ONNX Runtime's own attention in the place of one written in standard operators, as a graph is loaded.

    text = with_attention_kernels(file.read_bytes())

Its CPU kernel (com.microsoft MultiHeadAttention, float32) takes rows as the projections give them and
leaves scores in the cache: no transposed copies. A file stays what every other reader understands; here the
nodes that carry a remark (`llamavid.attention_remark`) are replaced, and what only they needed is dropped.
Takes and gives the bytes of an `onnx.ModelProto`, and needs no `onnx`.

Note [Fields]
    Numbers of fields, from onnx.proto, which never change: ModelProto.graph 7; GraphProto.node 1, .output 12;
    NodeProto.input 1, .output 2, .name 3, .op_type 4, .attribute 5, .domain 7, .metadata_props 9;
    AttributeProto.name 1, .f 2, .i 3, .type 20 (FLOAT 1, INT 2); StringStringEntryProto.key 1, .value 2;
    ValueInfoProto.name 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from llamavid.attention_remark import KEY, Attention, attention_of
from llamavid.protobuf import Field, fields, number_field, text_field, written

_KERNEL, _DOMAIN = "MultiHeadAttention", "com.microsoft"
_GRAPH, _NODE, _GRAPH_OUTPUT = 7, 1, 12
_INPUT, _OUTPUT, _NAME, _OP_TYPE, _ATTRIBUTE, _NODE_DOMAIN, _METADATA = 1, 2, 3, 4, 5, 7, 9
_FLOAT, _INT = 1, 2


def with_attention_kernels(model: bytes) -> bytes:
    """The same model; as it is where nothing in it carries a remark.

    Raises:
        ValueError: it is no model, or a remark is not one of ours.
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
        if part.number == _NODE:
            node = _replaced(part.data)
            if not needed.intersection(_texts(node, _OUTPUT)):
                continue
            needed.update(_texts(node, _INPUT))
            part = Field(_NODE, part.kind, node)
        kept.append(part)
    return written(reversed(kept))


def _replaced(node: bytes) -> bytes:
    """The kernel, of the same name and output, where the node carries a remark; else the node."""
    for entry in _of(node, _METADATA):
        if _texts(entry, 1) == [KEY]:
            name, (output,) = _texts(node, _NAME), _texts(node, _OUTPUT)
            return _kernel(attention_of(_texts(entry, 2)[0]), name[0] if name else output, output)
    return node


def _kernel(attention: Attention, name: str, output: str) -> bytes:
    scale = struct.pack("<f", attention.scale)
    return written(
        [
            *(text_field(_INPUT, value) for value in (attention.q, attention.k, attention.v)),
            text_field(_OUTPUT, output),
            text_field(_NAME, name),
            text_field(_OP_TYPE, _KERNEL),
            text_field(_NODE_DOMAIN, _DOMAIN),
            _attribute("num_heads", number_field(3, attention.heads), _INT),
            _attribute("scale", Field(2, 5, scale), _FLOAT),
        ]
    )


def _attribute(name: str, value: Field, kind: int) -> Field:
    return Field(_ATTRIBUTE, 2, written([text_field(1, name), value, number_field(20, kind)]))


def _of(message: bytes, number: int) -> Iterator[bytes]:
    return (field.data for field in fields(message) if field.number == number)


def _texts(message: bytes, number: int) -> list[str]:
    return [data.decode() for data in _of(message, number)]
