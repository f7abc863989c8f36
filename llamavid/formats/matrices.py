"""What a format leaves of a matrix [K, N]: the number that its product is computed with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType
from llamavid.formats.eight_bits import EightBits, quantize_columns
from llamavid.formats.int4 import dequantized

Array = npt.NDArray[np.float32]


def rounded_matrix(
    matrix: Array,
    format: str,
    *,
    block: int | None = None,
    importance: Array | None = None,
    compute: DType = DType.FLOAT32,
) -> Array:
    """The matrix after rounding to int8, fp8 or int4 and back.

    Args:
        block: of int4.
        importance: of int4, [K]; see `quantize_int4`.
        compute: the type that eight-bit scales are stored in.
    """
    if format == "int4":
        assert block
        return dequantized(matrix, block, importance)
    return quantize_columns(matrix, EightBits(format), compute).restored


def relative_error(matrix: Array, rounded: Array) -> float:
    """Norm of what rounding changed over the norm of the matrix; 0 for a matrix of zeros."""
    norm = float(np.linalg.norm(matrix))
    return float(np.linalg.norm(matrix - rounded)) / norm if norm else 0.0
