"""OpenVINO beside ONNX Runtime, on the same ONNX file. Needs `pip install 'llamavid[bench]'`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]


def compiled(file: Path, *, threads: int | None = None, precision: str = "f32") -> Callable[[Tensors], Any]:
    """The graph on the CPU, on as many threads as cores; inputs by name -> what indexes outputs by name.

    It takes int8 Q/DQ and int4 DequantizeLinear into its products, and multiplies in no less than float32
    elsewhere: told so, because on processors that have it, it would choose bfloat16, `precision` "bf16".
    """
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads or os.cpu_count(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
    return lambda inputs: request.infer(dict(inputs), share_inputs=True)


def has_bfloat16() -> bool:
    """Whether the processor multiplies in it, so that OpenVINO would."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
