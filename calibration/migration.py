"""Chooses the vector by which an input's channels are divided and the weights' columns multiplied.

    divisor = chosen_divisor(seen, weights, "int8")         float32 [K], or None: leave it alone

The product stays what it was; where the rounding falls changes (Note [Migration] of `llamavid.scales`). A
vector is tried for every alpha up to 1: int8 and fp8 as SmoothQuant has it (arXiv 2211.10438, equation 4),

    s = largest|x| ^ alpha / largest|w| ^ (1 - alpha),

for int4 as AWQ (arXiv 2306.00978, equation 4), s = mean|x| ^ alpha; both by channel. The one is taken whose
rounded product of the sampled rows is nearest to the exact one. Knows no modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from llamavid.calibration.histogram import ChannelStatistics
from llamavid.formats.eight_bits import EightBits
from llamavid.formats.matrices import rounded_matrix

Array = npt.NDArray[np.float32]

ALPHAS = tuple(step / 20 for step in range(1, 21))
# No channel is divided by more, or multiplied: float16 holds a gain divided by 256 to its last bit.
LARGEST_RATIO = 256.0
# Leaving the model alone wins where no vector takes a hundredth off the error: less is chance.
_WORTH = 0.99
# Weights that a search rounds for every alpha: a layer of 7B takes seconds. int4 tries nine steps a block.
_WEIGHTS = {"int8": 1 << 20, "fp8": 1 << 20, "int4": 1 << 19}


def chosen_divisor(
    sample: Array,
    channels: ChannelStatistics,
    weights: Sequence[Array],
    format: str,
    *,
    block: int | None = None,
) -> Array | None:
    """float32 [K], all above 0; None where no vector is worth it.

    Args:
        sample: rows of the input [R, K].
        channels: of all of the input.
        weights: [N, K] of every product that reads it.
        format: int8, fp8 or int4.
        block: of int4.
    """
    some = _some_rows(weights, _WEIGHTS[format] // sample.shape[1])
    exact = [_product(sample, weight.T) for weight in some]

    def error(divisor: Array) -> float:
        x = _rounded_input(sample / divisor, channels, divisor, format)
        importance = (channels.mean_square / divisor.astype(np.float64) ** 2).astype(np.float32)
        found = (
            _product(x, rounded_matrix((weight * divisor).T, format, block=block, importance=importance))
            for weight in some
        )
        return sum(_relative_square(y, expected) for y, expected in zip(found, exact, strict=True))

    least, best = _WORTH * error(np.ones(sample.shape[1], np.float32)), None
    for divisor in _candidates(channels, weights, format):
        if (found := error(divisor)) < least:
            least, best = found, divisor
    return best


def _product(x: Array, matrix: Array) -> Array:
    """By PyTorch, as all other products here: NumPy's threads would spin beside its, on the same cores."""
    return np.asarray(torch.from_numpy(x) @ torch.from_numpy(matrix))


def _candidates(channels: ChannelStatistics, weights: Sequence[Array], format: str) -> Iterator[Array]:
    """A vector for every alpha."""
    if format == "int4":
        x, w = _above_zero(channels.mean_magnitude), np.ones(len(channels.largest))
    else:
        x = _above_zero(channels.largest)
        w = _above_zero(np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0))
    for alpha in ALPHAS:
        yield _bounded(x**alpha / w ** (1 - alpha))


def _bounded(vector: npt.NDArray[np.float64]) -> Array:
    """Around 1: both the largest and the least are as far from it. A factor common to all changes nothing."""
    centered = vector / np.sqrt(vector.max() * vector.min())
    return np.clip(centered, 1 / LARGEST_RATIO, LARGEST_RATIO).astype(np.float32)


def _above_zero(magnitudes: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """A channel that is always 0 is as one of the smallest."""
    wide = magnitudes.astype(np.float64)
    return np.maximum(wide, wide.max() / LARGEST_RATIO**2) if wide.any() else np.ones_like(wide)


def _some_rows(weights: Sequence[Array], count: int) -> list[Array]:
    """About so many output channels of all weights together, evenly spread."""
    total = sum(len(weight) for weight in weights)
    every = max(1, -(-total // max(count, 1)))
    return [weight[:: min(every, len(weight))] for weight in weights]


def _rounded_input(x: Array, channels: ChannelStatistics, divisor: Array, format: str) -> Array:
    """With one step for all of it, which the largest of all that was seen sets; int4 leaves it as it is."""
    if format == "int4":
        return x
    eight_bits = EightBits(format)
    step = np.float32((channels.largest / divisor).max() / eight_bits.largest)
    return eight_bits.nearest(x / step) * step


def _relative_square(found: Array, exact: Array) -> float:
    """Of the error's norm to that of the exact product; 0 for a product of zeros."""
    norm = float(np.square(exact, dtype=np.float64).sum())
    return float(np.square(found - exact, dtype=np.float64).sum()) / norm if norm else 0.0
