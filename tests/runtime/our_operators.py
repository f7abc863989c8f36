"""A graph of one of our operators, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from llamavid.runtime.kernels import our_library

Array = np.ndarray[Any, Any]

LIBRARY = our_library()
RUN_HERE = pytest.mark.skipif(LIBRARY is None, reason="the processor has no AVX-512 VNNI")

_TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}


def operator(
    kind: str,
    values: Mapping[str, type[np.generic]],
    constants: Mapping[str, Array | None],
    *,
    gives: Sequence[type[np.generic] | None],
    threads: int = 1,
    **attributes: float,
) -> Callable[..., list[Array]]:
    """Takes `values`, each of a type, in the order of the inputs; `constants` come behind, and its outputs
    have types. None: left out."""
    names = [*values, *(name if value is not None else "" for name, value in constants.items())]
    while names[-1] == "":
        names.pop()
    outputs = [f"output {place}" if of else "" for place, of in enumerate(gives)]
    node = helper.make_node(kind, names, outputs, domain="llamavid", **attributes)
    graph = helper.make_graph(
        [node],
        kind,
        [
            helper.make_tensor_value_info(name, _TYPES[np.dtype(of)], None)
            for name, of in values.items()
            if name
        ],
        [
            helper.make_tensor_value_info(name, _TYPES[np.dtype(of)], None)
            for name, of in zip(outputs, gives, strict=True)
            if of
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if value is not None],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("llamavid", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(LIBRARY)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda **given: [np.asarray(value) for value in session.run(None, given)]
