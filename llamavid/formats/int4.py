"""int4 weights: 16 levels, one scale for `block` rows of a column. Activations stay as they are.

Symmetric, zero point 0: TensorRT takes no other. Takes float32 matrices [K, N], K the input channels.

Note [Clipping]
    The largest weight of a block sets its step, and all others pay for it. A smaller step clips that one
    and rounds the others better. Which step is best depends on what the weights are multiplied with: an
    error in channel k costs its square times the mean square of the activations there. With those mean
    squares (`importance`, from calibration) every block takes the best of `RATIOS`; without, the largest
    weight rules.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

BLOCK_SIZES = (32, 64, 128)
LARGEST = 7  # -8 is a level too, taken by what is clipped
RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)  # of the step that keeps the largest weight
_PIECE = 1 << 22  # weights that are tried at once: 16 MiB, and the caches see them again


class Int4(NamedTuple):
    """A quantized matrix [K, N]."""

    levels: npt.NDArray[np.int8]  # [K, N], -8 to 7
    scale: Array  # [K/block, N]


def quantize_int4(weight: Array, block: int, importance: Array | None = None) -> Int4:
    """Rounds weight [K, N] to the nearest of 16 levels. The last block may be short.

    Args:
        importance: [K], mean square of each input channel; Note [Clipping].
    """
    scale: Array = _largest_by_block(weight, block) / np.float32(LARGEST)
    scale[scale == 0] = 1  # a block of zeros
    if importance is not None:
        scale *= _best_ratios(weight, scale, block, importance)
    return Int4(_levels(weight, _by_row(scale, len(weight), block)).astype(np.int8), scale)


def dequantized(weight: Array, block: int, importance: Array | None = None) -> Array:
    """What int4 leaves of weight [K, N]."""
    levels, scale = quantize_int4(weight, block, importance)
    return levels * _by_row(scale, len(weight), block)


def packed_int4(levels: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Whole numbers from -8 to 7, two a byte, low nibble first (the layout of ONNX INT4)."""
    flat = levels.reshape(-1).view(np.uint8) & 0x0F
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8)


def missing_rows(rows: int, block: int) -> int:
    """Zeros to add to a column of `rows`, so that every block is whole.

    A short last block is ONNX, and ONNX Runtime reads it; TensorRT refuses it, or, where the number of
    scales happens to divide the rows, takes other blocks than were meant (48 rows of 32: two blocks of 24).
    """
    return -rows % block


def _largest_by_block(weight: Array, block: int) -> Array:
    starts = np.arange(0, len(weight), block)
    return np.maximum.reduceat(np.abs(weight), starts, axis=0).astype(np.float32)


def _best_ratios(weight: Array, scale: Array, block: int, importance: Array) -> Array:
    """[K/block, N]: the ratio of least weighted square error of each block; of equal ones the largest."""
    columns = max(1, _PIECE // len(weight))
    best = np.ones_like(scale)
    for start in range(0, weight.shape[1], columns):
        piece = slice(start, start + columns)
        best[:, piece] = _best_ratios_of(weight[:, piece], scale[:, piece], block, importance)
    return best


def _best_ratios_of(weight: Array, scale: Array, block: int, importance: Array) -> Array:
    starts, best = np.arange(0, len(weight), block), np.ones_like(scale)
    least = np.full_like(scale, np.inf)
    for ratio in RATIOS:
        step = _by_row(scale * np.float32(ratio), len(weight), block)
        error = weight - _levels(weight, step) * step
        cost = np.add.reduceat(error * error * importance[:, None], starts, axis=0)
        better = cost < least
        best[better], least[better] = ratio, cost[better]
    return best


def _levels(weight: Array, step: Array) -> Array:
    return np.clip(np.rint(weight / step), -LARGEST - 1, LARGEST)


def _by_row(scale: Array, rows: int, block: int) -> Array:
    """One scale for each element, [K, N]."""
    return np.repeat(scale, block, axis=0)[:rows]
