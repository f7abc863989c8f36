"""Nodes of an ONNX graph, read from its bytes and written to them, without `onnx`.

    node = node_of(data)
    data = node_bytes(Node("QuantizeLinear", (x, step, zero), (levels,)))

Note [Fields]
    Numbers of fields, from onnx.proto, which never change: NodeProto.input 1, .output 2, .name 3,
    .op_type 4, .attribute 5, .domain 7, .metadata_props 9; AttributeProto.name 1, .f 2, .i 3, .type 20
    (FLOAT 1, INT 2); StringStringEntryProto.key 1, .value 2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from llamavid.protobuf import SHORT, Field, bytes_field, fields, number_field, text_field, written

_INPUT, _OUTPUT, _NAME, _OP_TYPE, _ATTRIBUTE, _DOMAIN, _METADATA = 1, 2, 3, 4, 5, 7, 9
_FLOAT, _INT = 1, 2


@dataclass(frozen=True)
class Node:
    """An operator: names of values, "" where an optional input is left out."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    domain: str = ""
    name: str = ""
    attributes: tuple[Field, ...] = ()
    rest: tuple[Field, ...] = ()  # metadata and what else it came with

    def float_of(self, attribute: str, default: float) -> float:
        """A number that is its attribute."""
        for field in self.attributes:
            parts = {part.number: part.data for part in fields(field.data)}
            if parts[1].decode() == attribute:
                return float(struct.unpack("<f", parts[2])[0])
        return default

    def note(self, key: str) -> str | None:
        """Its metadata of that key."""
        for field in self.rest:
            if field.number == _METADATA:
                parts = {part.number: part.data.decode() for part in fields(field.data)}
                if parts.get(1) == key:
                    return parts.get(2, "")  # which is not written where it is empty
        return None


def node_of(data: bytes) -> Node:
    """Raises `ValueError` where the bytes are no node."""
    parts = list(fields(data))
    texts = {
        number: tuple(part.data.decode() for part in parts if part.number == number)
        for number in (_INPUT, _OUTPUT, _NAME, _OP_TYPE, _DOMAIN)
    }
    return Node(
        "".join(texts[_OP_TYPE]),
        texts[_INPUT],
        texts[_OUTPUT],
        "".join(texts[_DOMAIN]),
        "".join(texts[_NAME]),
        tuple(part for part in parts if part.number == _ATTRIBUTE),
        tuple(part for part in parts if part.number not in (*texts, _ATTRIBUTE)),
    )


def node_bytes(node: Node) -> bytes:
    texts = [(_NAME, node.name), (_OP_TYPE, node.kind), (_DOMAIN, node.domain)]
    return written(
        [
            *(text_field(_INPUT, name) for name in node.inputs),
            *(text_field(_OUTPUT, name) for name in node.outputs),
            *(text_field(number, text) for number, text in texts),
            *node.attributes,
            *node.rest,
        ]
    )


def float_attribute(name: str, value: float) -> Field:
    return _attribute(name, Field(2, SHORT, struct.pack("<f", value)), _FLOAT)


def int_attribute(name: str, value: int) -> Field:
    return _attribute(name, number_field(3, value), _INT)


def _attribute(name: str, value: Field, kind: int) -> Field:
    return bytes_field(_ATTRIBUTE, written([text_field(1, name), value, number_field(20, kind)]))
