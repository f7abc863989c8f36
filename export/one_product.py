"""One matrix product as a graph of its own: x [rows, K] times a weight [K, N], in a precision.

    file = write_product(folder, (257, 1408, 6144), INT8)

It is written as the big graphs write theirs, with random numbers: what it takes to multiply is the same. Its
time is measured elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llamavid.calibrated import GraphCalibration
from llamavid.contract import DType, GraphContract, TensorSpec
from llamavid.export.builder import GraphBuilder
from llamavid.export.layers import Layers
from llamavid.export.precision import Precision
from llamavid.scales import GraphScales, Step

INPUT, OUTPUT, MODULE = "x", "y", "product"
_LARGEST = 4.0  # of normal numbers: a usual range


def write_product(folder: Path, shape: tuple[int, int, int], precision: Precision) -> Path:
    """`NAME.onnx` and its data in `folder`; x and y are of the precision's boundary type.

    Args:
        shape: rows, K and N.
        precision: of float32 around the product where ONNX Runtime's CPU is to multiply in int8.
    """
    rows, k, n = shape
    contract = GraphContract(
        (_spec(INPUT, precision.boundary, rows, k),), (_spec(OUTPUT, precision.boundary, rows, n),)
    )
    weight = np.random.default_rng(0).standard_normal((k, n), np.float32) / np.float32(np.sqrt(k))
    with GraphBuilder(f"{precision.name}_{rows}_{k}_{n}", contract, folder) as g:
        layers = Layers(g, lambda name: weight.T, precision, calibration=_calibration(precision))
        g.output(OUTPUT, layers.matmul(g.input(INPUT), f"{MODULE}.weight", weight))
        return g.save()


def _calibration(precision: Precision) -> GraphCalibration | None:
    if precision.eight_bits is None:
        return None
    step = Step(_LARGEST, _LARGEST / precision.eight_bits.largest)
    return GraphCalibration(GraphScales(precision.eight_bits.value, {MODULE: step}), {})


def _spec(name: str, dtype: DType, *dims: int) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(map(str, dims)))
