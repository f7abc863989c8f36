"""A bundle's graph as TensorRT's parser is to read it: the file's own text with what only TensorRT wants.

    parser.parse(graph_for_tensorrt(file, cache=4096), path=str(file))   # weights are found beside the file

Note [Static cache]
    TensorRT updates a cache in place (TensorScatter) only where its length is a number at build time: "The KV
    cache tensor must have a static sequence length dimension". So an engine of the static lowering has one
    length, chosen when it is built; the same graph in ONNX Runtime takes any.
Note [Decomposable]
    Attention in float32 has no fused kernel and fails to build, unless a node says that it may be taken
    apart, by an attribute that ONNX does not know: ONNX Runtime and the checker refuse it in the file.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

_CACHE = "cache"  # the dimension of language_contract


def graph_for_tensorrt(file: Path, *, cache: int | None = None) -> bytes:
    """The graph, its weights still outside.

    Args:
        cache: length of the key-value buffers; None leaves it open, which the static lowering cannot be.
    """
    model = onnx.load(str(file), load_external_data=False)
    if cache is not None:
        for value in (*model.graph.input, *model.graph.output):
            _fix(value, cache)
    if _is_float32(model):
        for node in model.graph.node:
            if node.op_type == "Attention":
                node.attribute.append(helper.make_attribute("TRT_decomposable", 1))
    return bytes(model.SerializeToString())


def _fix(value: onnx.ValueInfoProto, cache: int) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if dim.dim_param == _CACHE:
            dim.dim_value = cache


def _is_float32(model: onnx.ModelProto) -> bool:
    """Whether attention computes in float32: the cache has the type of products."""
    return any(
        value.name.startswith("past.") and value.type.tensor_type.elem_type == TensorProto.FLOAT
        for value in model.graph.input
    )
