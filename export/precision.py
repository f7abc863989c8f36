"""Precision lives in the graph: which type each weight and each operation has.

A `Precision` is data. float32 computes everything in float32; float16 keeps
matrix products in float16 and LayerNorm, softmax and the residual sum in float32,
where a ViT overflows or loses what matters (facts/field, 3). int4 is the weights of
the language model alone, symmetric in blocks along K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType

BLOCK_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Precision:
    """Types of one graph.

    Args:
        compute: of matrix products, their weights and the graph's boundary.
        sensitive: of normalizations, softmax and residual sums.
        int4_block: rows of K that share one scale; None keeps weights in `compute`.
    """

    name: str
    compute: DType
    sensitive: DType = DType.FLOAT32
    int4_block: int | None = None


FP32 = Precision("fp32", DType.FLOAT32)
FP16 = Precision("fp16", DType.FLOAT16)


def int4_precision(block: int) -> Precision:
    """Four-bit weights, float32 in between: what ONNX Runtime's CPU kernels want."""
    return Precision("int4", DType.FLOAT32, int4_block=block)


class Int4(NamedTuple):
    """A quantized matrix [K, N]."""

    levels: npt.NDArray[np.int8]  # [K, N], -8 to 7
    scale: npt.NDArray[np.float32]  # [K/block, N]


def quantize_int4(weight: npt.NDArray[np.float32], block: int) -> Int4:
    """Rounds weight [K, N] to 16 levels, one scale for `block` rows of a column.

    Symmetric, zero point 0: TensorRT takes no other. scale = largest magnitude / 7, round to nearest.
    The last block may be short.
    """
    starts = np.arange(0, len(weight), block)
    scale = (np.maximum.reduceat(np.abs(weight), starts, axis=0) / 7).astype(np.float32)
    scale[scale == 0] = 1  # a block of zeros
    levels = np.rint(weight / _by_row(scale, len(weight), block))
    return Int4(np.clip(levels, -8, 7).astype(np.int8), scale)


def dequantized(weight: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """What int4 leaves of weight [K, N]."""
    levels, scale = quantize_int4(weight, block)
    return levels * _by_row(scale, len(weight), block)


def _by_row(scale: npt.NDArray[np.float32], rows: int, block: int) -> npt.NDArray[np.float32]:
    """One scale for each element, [K, N]."""
    return np.repeat(scale, block, axis=0)[:rows]


def packed_int4(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Whole numbers from -8 to 7, two a byte, low nibble first (the layout of ONNX INT4)."""
    flat = levels.reshape(-1).view(np.uint8) & 0x0F
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8)
