"""Weights in eight bits: int8, whose levels are even, and float8 e4m3, whose steps grow with the value.

Symmetric, zero point 0: TensorRT takes no other. Takes float32 matrices, gives levels and scales; what an
activation's scale is comes from `llamavid.scales`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.export.precision import EightBits

Array = npt.NDArray[np.float32]

LEVELS: dict[EightBits, np.dtype] = {
    EightBits.INT8: np.dtype(np.int8),
    EightBits.FP8: np.dtype(ml_dtypes.float8_e4m3fn),
}
LARGEST = {EightBits.INT8: 127.0, EightBits.FP8: 448.0}
# float16 below this has fewer bits than it should: a scale there would be wrong by up to half.
_LEAST_FLOAT16 = float(np.finfo(np.float16).tiny)


class Quantized(NamedTuple):
    """A matrix [K, N] in eight bits."""

    levels: npt.NDArray[Any]  # [K, N], int8 or float8_e4m3fn
    scale: Array  # [N], exactly representable in the graph's compute type


def quantize_columns(weight: Array, format: EightBits, compute: DType) -> Quantized:
    """weight [K, N], one scale a column (an output channel): largest magnitude over the largest level.

    The scale is rounded to `compute` first and the levels to it, so that its rounding is no error.
    """
    scale = representable(np.abs(weight).max(axis=0) / LARGEST[format], compute)
    scale[scale == 0] = 1  # a column of zeros
    return Quantized(levels_of(weight / scale, format), scale)


def levels_of(scaled: Array, format: EightBits) -> npt.NDArray[Any]:
    """Values in units of a scale -> the nearest levels; what is out of range takes the last one."""
    inside = np.clip(scaled, -LARGEST[format], LARGEST[format])
    return (np.rint(inside) if format is EightBits.INT8 else inside).astype(LEVELS[format])


def representable(scale: npt.ArrayLike, compute: DType) -> Array:
    """The scale as `compute` stores it, in float32; never so small that float16 cannot say it well."""
    exact = np.asarray(scale, np.float32)
    if compute is not DType.FLOAT16:
        return exact
    floored = np.where(exact > 0, np.maximum(exact, _LEAST_FLOAT16), 0)
    return floored.astype(np.float16).astype(np.float32)
