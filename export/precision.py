"""Precision lives in the graph: which type each weight and each operation has.

A `Precision` is data: the type of matrix products, the type of what loses most in it (normalizations,
softmax, residual sums), and the format of weights. Graphs are strongly typed: no builder flag exists that
would change them, and ONNX Runtime computes the numbers that TensorRT will.

    name  products  weights           activations at a product
    fp32  float32   float32           float32
    fp16  float16   float16           float16
    bf16  bfloat16  bfloat16          bfloat16
    int8  float32   int8 a column     int8 a tensor      scales.json
    fp8   float16   e4m3 a column     e4m3 a tensor      scales.json
    int4  float16   int4 a block      float16            the language model: float32

Note [Types around int8]
    TensorRT-RTX builds int8 Q/DQ with float32, float16 and bfloat16 scales alike (SM75 to SM121). ONNX
    Runtime's CPU multiplies int8 by int8 in float32 graphs only (MatMulIntegerToFloat); with float16
    scales it unpacks and multiplies floats. So int8 is float32 around the products unless float16 is asked
    for, which a GPU prefers: attention and GELU then move half the bytes. fp8 is float16: ONNX Runtime 1.31
    fuses float32 e4m3 Q/DQ into a node that it then refuses. A scale has the type of what it scales: a cast
    between DequantizeLinear and MatMul would keep them from fusing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType

BLOCK_SIZES = (32, 64, 128)


class EightBits(str, enum.Enum):
    """Formats of weights and activations at a product."""

    INT8 = "int8"
    FP8 = "fp8"


@dataclass(frozen=True)
class Precision:
    """Types of one graph.

    Args:
        compute: of matrix products, their weights and the graph's boundary.
        sensitive: of normalizations, softmax and residual sums.
        int4_block: rows of K that share one scale; None keeps weights in `compute`.
        eight_bits: format of the products' two sides; None leaves them in `compute`.
    """

    name: str
    compute: DType
    sensitive: DType = DType.FLOAT32
    int4_block: int | None = None
    eight_bits: EightBits | None = None
    stored: DType | None = None  # of weights, where that is another than they multiply in

    @property
    def boundary(self) -> DType:
        """Of a frame graph's inputs and outputs: bfloat16 stays inside, NumPy has none."""
        return DType.FLOAT32 if self.compute is DType.BFLOAT16 else self.compute


FP32 = Precision("fp32", DType.FLOAT32)
FP16 = Precision("fp16", DType.FLOAT16)
BF16 = Precision("bf16", DType.BFLOAT16)
INT8 = Precision("int8", DType.FLOAT32, eight_bits=EightBits.INT8)  # Note [Types around int8]
FP8 = Precision("fp8", DType.FLOAT16, eight_bits=EightBits.FP8)


FRAME_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
COMPUTE = {"fp32": DType.FLOAT32, "fp16": DType.FLOAT16}


def frame_precision(name: str, *, compute: str | None, int4_block: int) -> Precision:
    """Of the three frame graphs: one of `FRAME_PRECISIONS`.

    Args:
        compute: around rounded weights, `fp32` or `fp16`; None: what the table above says.
    """
    named = {precision.name: precision for precision in (FP32, FP16, BF16, INT8, FP8)}
    named["int4"] = int4_precision(int4_block, DType.FLOAT16)
    return replace(named[name], compute=COMPUTE[compute]) if compute else named[name]


def int4_precision(block: int, compute: DType = DType.FLOAT32) -> Precision:
    """Four-bit weights; float32 in between is what ONNX Runtime's CPU kernels want, float16 TensorRT."""
    return Precision("int4", compute, int4_block=block)


def missing_rows(rows: int, block: int) -> int:
    """Zeros to add to a column of `rows`, so that every block is whole.

    A short last block is ONNX, and ONNX Runtime reads it; TensorRT refuses it, or, where the number of
    scales happens to divide the rows, takes other blocks than were meant (48 rows of 32: two blocks of 24).
    """
    return -rows % block


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
