"""Products of int4 weights as our own operator (`native/src/int4_product.h`), as a graph is loaded.

    names = takeable(nodes, weights, outputs)
    node = int4_product(remark, node)
    weight = as_bytes(weight, names)

The operator takes a weight as bytes [K, N / 2], because ONNX Runtime gives no operator of others an int4:
in a file these are the same bytes, so that only what the graph says of them changes. A weight that anything
else reads stays what it is, and so do its products.

Note [Fields]
    Numbers of fields, from onnx.proto, which never change: TensorProto.dims 1, .data_type 2 (UINT8 2,
    INT4 22), .int32_data 5, .name 8. Numbers in int32_data are bytes only for int4; elsewhere (raw_data,
    external data) the layout is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from llamavid.protobuf import VARINT, Field, fields, number_field, number_in, written
from llamavid.remarks import KEY, Int4Product, remark_of
from llamavid.runtime.joined_nodes import OURS
from llamavid.runtime.onnx_nodes import Node

BLOCKS = (32, 64, 128, 256)

_DIMS, _DATA_TYPE, _INT32_DATA, _NAME = 1, 2, 5, 8
_UINT8, _INT4 = 2, 22


def takeable(nodes: Sequence[Node], weights: Iterable[bytes], outputs: Set[str]) -> set[str]:
    """Names of int4 weights all of whose products our operator can take.

    Args:
        weights: the graph's `onnx.TensorProto`s.
        outputs: names of its outputs.
    """
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    remarks = {node.outputs: remark for node in nodes if (remark := _remark(node))}
    blocks = {remark.levels: remark.block for remark in remarks.values()}

    def only_multiplied(name: str) -> bool:
        unpacked = [value for node in users[name] for value in node.outputs]
        products = [node for value in unpacked for node in users.get(value, [])]
        taken = [remarks[node.outputs].levels == name for node in products if node.outputs in remarks]
        return len(taken) == len(products) and all(taken) and not outputs & set(unpacked)

    shapes = _int4_shapes(weights)
    return {
        name
        for name, block in blocks.items()
        if name in shapes and _fits(shapes[name], block) and only_multiplied(name)
    }


def int4_product(product: Int4Product, node: Node) -> Node:
    """What takes the place of the product that `node` ends."""
    return Node("Int4Product", (product.x, product.levels, product.scales), node.outputs, OURS, node.name)


def as_bytes(weight: bytes, names: Collection[str]) -> bytes:
    """The `onnx.TensorProto` of an int4 weight [K, N] as one of bytes [K, N / 2]; of other names as it is."""
    parts = list(fields(weight))
    if _name_of(parts) not in names:
        return weight
    rows, columns = _dims(parts)
    header = [number_field(_DIMS, rows), number_field(_DIMS, columns // 2), number_field(_DATA_TYPE, _UINT8)]
    return written([*header, *(part for part in parts if part.number not in (_DIMS, _DATA_TYPE))])


def _remark(node: Node) -> Int4Product | None:
    note = node.note(KEY)
    remark = remark_of(note) if note is not None else None
    return remark if isinstance(remark, Int4Product) else None


def _int4_shapes(weights: Iterable[bytes]) -> Mapping[str, Sequence[int]]:
    """By name, of those whose bytes a file has one after the other."""
    found = (list(fields(weight)) for weight in weights)
    return {_name_of(parts): _dims(parts) for parts in found if _is_int4(parts)}


def _is_int4(parts: Sequence[Field]) -> bool:
    kinds = [number_in(part) for part in parts if part.number == _DATA_TYPE]
    plain = all(part.kind == VARINT for part in parts if part.number == _DIMS)
    return kinds == [_INT4] and plain and not any(part.number == _INT32_DATA for part in parts)


def _fits(shape: Sequence[int], block: int) -> bool:
    """[K, N]: columns of whole blocks, rows of whole bytes."""
    return len(shape) == 2 and block in BLOCKS and shape[0] % block == 0 and shape[1] % 2 == 0


def _dims(parts: Iterable[Field]) -> Sequence[int]:
    return [number_in(part) for part in parts if part.number == _DIMS]


def _name_of(parts: Iterable[Field]) -> str:
    return next((part.data.decode() for part in parts if part.number == _NAME), "")
