"""From the histogram of a tensor to the step of its eight-bit format: what does the last level stand for?

    step(Observer.OUTPUT, histogram, EightBits.INT8).largest

What is larger is clipped, what is smaller is rounded to a level; each observer weighs the two in its own way.
All look at the input alone but one: `output` counts a value as much as the weights that it meets, so that it
minimizes the error of the product, errors of different channels taken as independent. After a migration
that matters: the largest channels are then those that meet the largest weights.
Takes counts, gives a `Step`: the same counts give the same step, bit for bit. Knows nothing about modules.
"""

from __future__ import annotations

import enum
import functools

import numpy as np
import numpy.typing as npt

from llamavid.calibration.histogram import Histogram
from llamavid.errors import ScalesError, UsageError
from llamavid.formats.eight_bits import EightBits
from llamavid.scales import Step

PERCENTILE = 99.99
# Thresholds that are tried. Both errors are flat around their least; squares are tried by factors of 1.03.
_CANDIDATES = 256
_FEW = 1e-4  # of the values: what entropy may clip of a tensor whose rest is too small for the histogram
_EQUAL = 1e-9  # divergences that differ by rounding alone
_FINEST = 2.0**-9  # every e4m3 number is a multiple of it, and every whole number

Array = npt.NDArray[np.float64]


class Observer(str, enum.Enum):
    """What chooses the largest magnitude that is kept."""

    ABSOLUTE_MAXIMUM = "absmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MEAN_SQUARED_ERROR = "mse"
    OUTPUT = "output"


def step(
    observer: Observer, histogram: Histogram, format: EightBits, *, percentile: float = PERCENTILE
) -> Step:
    """What `observer` chooses for the values that `histogram` has counted.

    Args:
        percentile: percent of the values that are kept, above 0 and at most 100; `PERCENTILE` alone reads it.

    Raises:
        ScalesError: nothing was counted but zeros. The caller knows of which module.
        UsageError: that percentile cannot be.
    """
    if not 0 < percentile <= 100:
        raise UsageError(f"percentile {percentile}", expected="a number above 0, at most 100")
    if histogram.largest == 0:
        raise ScalesError(
            "an activation is 0 in all that was watched",
            expected="activations that vary",
            next_step="Watch clips that show something.",
        )
    if observer is Observer.ABSOLUTE_MAXIMUM:
        largest = histogram.largest
    elif observer is Observer.PERCENTILE:
        largest = _percentile(histogram, percentile)
    elif observer is Observer.ENTROPY:
        largest = _least_divergence(histogram, format)
    elif observer is Observer.OUTPUT and histogram.weighted.any():
        largest = _least_squares(histogram, format, histogram.weighted)
    else:
        largest = _least_squares(histogram, format, histogram.counts.astype(np.float64))
    return Step(largest, largest / format.largest)


# Percentile


def _percentile(histogram: Histogram, percentile: float) -> float:
    """Below it lie so many percent of the values, which lie evenly in their bins."""
    below = np.cumsum(histogram.counts)
    rank = percentile / 100 * below[-1]
    bin = int(np.searchsorted(below, rank))
    inside = 1 - (below[bin] - rank) / histogram.counts[bin]
    return float(min((bin + inside) * histogram.width, histogram.largest))


# Entropy


def _least_divergence(histogram: Histogram, format: EightBits) -> float:
    """The threshold at which the levels tell the distribution best.

    S. Migacz, "8-bit inference with TensorRT", GTC 2017. Of a threshold after bin i, n_j values in bin j:
    P is n_j for j <= i, with all that is clipped added to bin i. Q is what levels leave of the unclipped
    n_j: the sum of a level's bins, spread evenly over those that are not empty. Each is divided by its sum;
    KL(P || Q) = sum over j of P_j log(P_j / Q_j) is least at the threshold that is chosen.

    Where bins are empty: a threshold comes after a bin that holds something, so Q is never 0 where P is not,
    and of equal divergences the largest threshold is taken. The first threshold comes after as many bins as
    there are levels (before, each bin has its own level, and P and Q differ by what is clipped alone), or,
    where outliers leave all others fewer bins than that, as soon as so few values lie beyond.
    """
    filled = np.flatnonzero(histogram.counts)
    beyond = histogram.total - np.cumsum(histogram.counts[filled])
    allowed = (filled + 1 >= len(_levels(format))) | (beyond <= _FEW * histogram.total)
    first = int(np.argmax(allowed))
    tried = np.unique(np.linspace(first, len(filled) - 1, _CANDIDATES).astype(int))
    divergences = np.array([_divergence(histogram, format, filled[: last + 1]) for last in tried])
    best = tried[divergences <= divergences.min() + _EQUAL][-1]
    return float(min((filled[best] + 1) * histogram.width, histogram.largest))


def _divergence(histogram: Histogram, format: EightBits, kept: npt.NDArray[np.int64]) -> float:
    """KL(P || Q) when `kept` are all bins with something in them that are not clipped."""
    counts = histogram.counts[kept].astype(np.float64)
    scale = (kept[-1] + 1) * histogram.width / format.largest
    levels = np.searchsorted(_between(format), (kept + 0.5) * histogram.width / scale)
    starts = np.flatnonzero(np.diff(levels, prepend=-1))
    bins = np.diff(starts, append=len(kept))
    q = np.repeat(np.add.reduceat(counts, starts) / bins, bins) / counts.sum()
    counts[-1] += histogram.total - counts.sum()
    p = counts / counts.sum()
    return float((p * np.log(p / q)).sum())


# Squares


def _least_squares(histogram: Histogram, format: EightBits, counts: Array) -> float:
    """The threshold with the least expected squared error."""
    used = _used_bins(histogram)
    bins = np.unique(np.geomspace(1, used, _CANDIDATES).round())[::-1]
    largest = np.minimum(bins * histogram.width, histogram.largest)
    return float(largest[np.argmin(expected_squares(histogram, format, largest, counts))])


def expected_squares(
    histogram: Histogram, format: EightBits, largest: Array, counts: Array | None = None
) -> Array:
    """The mean squared error of a value, rounding and clipping, for each of the thresholds `largest` [n].

    counts [2048]: in the place of the histogram's own.

    Values lie evenly in their bins. Their centers alone would not do: where levels are finer than bins, a
    center may fall on a level and nothing seem lost.
    """
    scale = largest[:, None] / format.largest
    used = _used_bins(histogram)
    ends = np.arange(used + 1) * histogram.width / scale
    counts = histogram.counts.astype(np.float64) if counts is None else counts
    sums = np.diff(_squares_below(ends, format)) @ counts[:used]
    return sums * scale[:, 0] ** 3 / histogram.width / counts.sum()


def _squares_below(ends: Array, format: EightBits) -> Array:
    """Integral of the squared error from 0 to each of `ends`, in units of the scale.

    Around a level l it is (x - l)^2, whose integral is (x - l)^3 / 3, up to the middle between two levels.
    """
    levels, between = _levels(format), _between(format)
    whole = ((between - levels[:-1]) ** 3 + (levels[1:] - between) ** 3) / 3  # from one level to the next
    nearest = np.searchsorted(between, ends)
    return np.append(0, np.cumsum(whole))[nearest] + (ends - levels[nearest]) ** 3 / 3


# Grids


@functools.cache
def _levels(format: EightBits) -> Array:
    """What the format tells apart from 0 on, in units of the scale: 128 of int8, 127 of e4m3."""
    numbers = np.arange(0, format.largest + _FINEST, _FINEST, dtype=np.float32)
    return np.unique(format.nearest(numbers)).astype(np.float64)


@functools.cache
def _between(format: EightBits) -> Array:
    """The middles between neighbours: where a value goes to the next level."""
    levels = _levels(format)
    return (levels[1:] + levels[:-1]) / 2


def _used_bins(histogram: Histogram) -> int:
    """Up to that of the largest magnitude."""
    return int(histogram.largest / histogram.width) + 1
