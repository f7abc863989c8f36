"""A graph's nodes in float32, whatever they were written in: the reference that a bisection needs.

Note [Reference]
    Two things separate a float16 graph from PyTorch: its weights were rounded once, at export, and its
    computation rounds at every step. A miscompiled block is an error of the computation, so the reference has
    the very weights of the graph (float16 ones cast, int4 and int8 ones dequantized with their own scales)
    and computes in float32. What the rounded weights cost is in the table of errors already.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import NodeProto, TensorProto, helper, numpy_helper

_HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def in_float32(nodes: Iterable[NodeProto], float_weights: Iterable[str]) -> list[NodeProto]:
    """Copies of `nodes` that compute in float32; weights are cast first, so that they may stay as stored."""
    names = {weight: f"{weight} in float32" for weight in sorted(float_weights)}
    casts = [
        helper.make_node("Cast", [weight], [name], name=name, to=TensorProto.FLOAT)
        for weight, name in names.items()
    ]
    return casts + [_upcast(node, names) for node in nodes]


def _upcast(node: NodeProto, names: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    for attribute in copy.attribute:
        if copy.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALVES:
            attribute.i = TensorProto.FLOAT
        if attribute.name == "value" and attribute.t.data_type in _HALVES:
            values = numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(numpy_helper.from_array(values))
    return copy
