"""Weights in eight bits: int8, whose levels are even, and float8 e4m3, whose steps grow with the value.

Takes float32 matrices, gives levels and scales; what an activation's scale is comes from `llamavid.scales`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.formats import fp8, int8

Array = npt.NDArray[np.float32]

# float16 below this has fewer bits than it should: a scale there would be wrong by up to half.
_LEAST_FLOAT16 = float(np.finfo(np.float16).tiny)


class EightBits(str, enum.Enum):
    """Formats of weights and activations at a product."""

    INT8 = "int8"
    FP8 = "fp8"

    @property
    def largest(self) -> float:
        """The last level, in units of the scale."""
        return {"int8": int8.LARGEST, "fp8": fp8.LARGEST}[self.value]

    def nearest(self, scaled: Array) -> Array:
        """Values in units of the scale -> the nearest levels, float32; what is outside takes the last one."""
        return {"int8": int8.nearest, "fp8": fp8.nearest}[self.value](scaled)


class Quantized(NamedTuple):
    """A matrix [K, N] in eight bits."""

    levels: Array  # [K, N], every one a number of the format
    scale: Array  # [N], exactly representable in the graph's compute type

    @property
    def restored(self) -> Array:
        """What is left of the matrix."""
        return self.levels * self.scale


def quantize_columns(weight: Array, format: EightBits, compute: DType) -> Quantized:
    """weight [K, N], one scale a column (an output channel): largest magnitude over the largest level.

    The scale is rounded to `compute` first and the levels to it, so that its rounding is no error.
    """
    scale = representable(np.abs(weight).max(axis=0) / format.largest, compute)
    scale[scale == 0] = 1  # a column of zeros
    return Quantized(format.nearest(weight / scale), scale)


def representable(scale: npt.ArrayLike, compute: DType) -> Array:
    """The scale as `compute` stores it, in float32; never so small that float16 cannot say it well."""
    exact = np.asarray(scale, np.float32)
    if compute is not DType.FLOAT16:
        return exact
    floored = np.where(exact > 0, np.maximum(exact, _LEAST_FLOAT16), 0)
    return floored.astype(np.float16).astype(np.float32)
