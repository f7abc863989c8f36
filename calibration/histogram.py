"""What calibration keeps of a tensor it has watched: magnitudes in bins, and figures of each channel.

    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)          # torch tensor, any shape, floating
    histogram.largest, histogram.end, histogram.counts

Takes torch tensors, gives NumPy arrays. Knows nothing about formats, modules or files.

Note [Bins]
    2,048 bins of equal width over [0, end), `end` being the least power of two above the largest magnitude.
    When a larger one comes `end` doubles and bins merge in pairs. A magnitude's bin is floor(m * 2048 / end),
    exact for powers of two, so merged bins are those that would have been filled in the first place: counts
    depend on the values alone, not on their order or on how they were split into batches.

Note [Weights]
    An error in channel k of an input costs its square times the energy of the weights that read channel k,
    the sum of their squares. With these energies the histogram has a second row of bins, in which a value
    counts as much as the weights that it meets: float64 sums, of which another order changes the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamavid.errors import ScalesError

BINS = 2048
# Bins / end must be a float32 number: smaller magnitudes share the first bins.
_LEAST_END = 2.0**-100
# Values a pass: buffers stay in a core's cache, and PyTorch keeps so few on one thread. 50 million float32
# values take 0.15 to 0.3 s; with twice as many a pass, on two busy cores, 0.56 s: threads wait for threads.
_PASS = 1 << 15

Counts = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
AnyCounts = TypeVar("AnyCounts", Counts, Array)


class Histogram:
    """Counts of a tensor's magnitudes, see Note [Bins].

    Attributes:
        counts: int64 [2048].
        end: where the last bin ends.
        weighted: float64 [2048], see Note [Weights]; zeros where no energies were given.
        largest: the largest magnitude, exactly.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(BINS, np.int64)
        self.weighted: Array = np.zeros(BINS)
        self.end = _LEAST_END
        self.largest = 0.0

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.end / BINS

    def add(self, values: Tensor, energies: Tensor | None = None) -> None:
        """Counts the magnitudes of a floating tensor of any shape, on any device.

        Args:
            energies: float64 [K], by channel (the last axis).

        Raises:
            ScalesError: one of them is inf or NaN; nothing was counted then.
        """
        flat = values.detach().reshape(-1)
        if not len(flat):
            return
        self._reach(_largest(flat))
        channels = 1 if energies is None else len(energies)
        passed = max(1, _PASS // channels) * channels  # whole rows, so that energies fit
        counts = torch.zeros(BINS, dtype=torch.int64, device=flat.device)
        weighted = torch.zeros(BINS, dtype=torch.float64, device=flat.device)
        met = None if energies is None else energies.to(flat.device).repeat(passed // channels)
        for bins in _bins(flat, BINS / self.end, passed):
            counts += torch.bincount(bins, minlength=BINS)
            if met is not None:
                weighted += torch.bincount(bins, met[: len(bins)], minlength=BINS)
        self.counts += counts.cpu().numpy()
        self.weighted += weighted.cpu().numpy()

    def merge(self, other: Histogram) -> None:
        """Counts what `other` has counted, which stays as it is."""
        self._reach(other.largest)
        doublings = _doublings(other.end, self.end)
        self.counts += _merged(other.counts, doublings)
        self.weighted += _merged(other.weighted, doublings)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For an npz; `end` follows from `largest`."""
        return {"counts": self.counts, "weighted": self.weighted, "largest": np.array([self.largest])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Histogram:
        """What `to_arrays` gave.

        Raises:
            ScalesError: they are no histogram.
        """
        counts, largest = (arrays.get(name, np.empty(0)) for name in ("counts", "largest"))
        if counts.shape != (BINS,) or counts.dtype != np.int64 or counts.min() < 0:
            raise ScalesError("counts of a histogram are damaged", expected=f"{BINS} whole numbers from 0 on")
        weighted = arrays.get("weighted", np.empty(0))
        sound = weighted.shape == (BINS,) and weighted.dtype == np.float64
        if not (sound and np.isfinite(weighted).all() and weighted.min() >= 0):
            raise ScalesError(
                "weighted counts of a histogram are damaged", expected=f"{BINS} numbers from 0 on"
            )
        if largest.shape != (1,) or largest.dtype != np.float64 or not 0 <= largest[0] < math.inf:
            raise ScalesError("largest of a histogram is damaged", expected="one number from 0 on")
        read = cls()
        read._reach(float(largest[0]))
        filled = np.flatnonzero(counts)
        if len(filled) and filled[-1] != int(read.largest / read.width):
            raise ScalesError(
                f"the last bin of a histogram is {filled[-1]}",
                expected=f"that of its largest, {read.largest}",
            )
        read.counts += counts
        read.weighted += weighted
        return read

    def _reach(self, largest: float) -> None:
        """Makes room for a magnitude."""
        self.largest = max(self.largest, largest)
        _, exponent = math.frexp(max(self.largest, _LEAST_END / 2))  # largest < 2^exponent
        end = math.ldexp(1.0, exponent)
        doublings = _doublings(self.end, end)
        self.counts, self.weighted = _merged(self.counts, doublings), _merged(self.weighted, doublings)
        self.end = end


def _largest(flat: Tensor) -> float:
    """Magnitude; one pass, which finds what is no number too."""
    least, most = (float(end) for end in torch.aminmax(flat))
    largest = max(-least, most)
    if not math.isfinite(largest):
        raise ScalesError(f"an activation is {'NaN' if math.isnan(largest) else 'inf'}", expected="numbers")
    return largest


def _bins(flat: Tensor, scale: float, passed: int) -> Iterator[Tensor]:
    """The bin of each value, int32, so many at a time."""
    scaled = torch.empty(min(passed, len(flat)), dtype=torch.float32, device=flat.device)
    bins = torch.empty_like(scaled, dtype=torch.int32)
    for part in flat.split(passed):
        exact = scaled[: len(part)].copy_(part)
        yield bins[: len(part)].copy_(exact.mul_(scale).abs_())


def _doublings(before: float, after: float) -> int:
    return math.frexp(after)[1] - math.frexp(before)[1]


def _merged(counts: AnyCounts, doublings: int) -> AnyCounts:
    """Counts after `end` doubled so often."""
    for _ in range(min(doublings, BINS.bit_length())):
        counts = np.concatenate((counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, counts.dtype)))
    return counts


class ChannelStatistics:
    """Of each channel (last axis) of a tensor that was watched: what migration and importance are made of.

    Sums are float64 of exact float32 values; another split into batches changes their last digits.

    Attributes:
        rows: how many were seen.
        largest: the largest magnitude, float64 [K].
    """

    def __init__(self, channels: int) -> None:
        self.rows = 0
        self.largest: Array = np.zeros(channels)
        self._magnitudes: Array = np.zeros(channels)
        self._squares: Array = np.zeros(channels)

    @property
    def mean_magnitude(self) -> Array:
        """[K]"""
        return self._magnitudes / max(self.rows, 1)

    @property
    def mean_square(self) -> Array:
        """[K]"""
        return self._squares / max(self.rows, 1)

    def add(self, values: Tensor) -> None:
        """Rows [..., K], floating.

        Raises:
            ScalesError: one of them is inf or NaN.
        """
        rows = values.detach().reshape(-1, len(self.largest))
        if not len(rows):
            return
        _largest(rows)
        for part in rows.split(max(1, _PASS // rows.shape[1])):
            magnitudes = part.double().abs_()
            self.largest = np.maximum(self.largest, magnitudes.amax(0).cpu().numpy())
            self._magnitudes += magnitudes.sum(0).cpu().numpy()
            self._squares += magnitudes.square_().sum(0).cpu().numpy()
        self.rows += len(rows)

    def merge(self, other: ChannelStatistics) -> None:
        """Takes in what `other` has seen, of as many channels."""
        self.rows += other.rows
        self.largest = np.maximum(self.largest, other.largest)
        self._magnitudes += other._magnitudes
        self._squares += other._squares

    def outliers(self, times: float = 10.0) -> list[int]:
        """Channels that get `times` as large as the median channel, the largest first."""
        above = np.flatnonzero(self.largest > times * np.median(self.largest))
        return sorted(above.tolist(), key=lambda channel: -self.largest[channel])

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For an npz."""
        sums = {"largest": self.largest, "magnitudes": self._magnitudes, "squares": self._squares}
        return {"rows": np.array([self.rows], np.int64), **sums}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ChannelStatistics:
        """What `to_arrays` gave.

        Raises:
            ScalesError: they are no statistics of channels.
        """
        rows = arrays.get("rows", np.empty(0))
        if rows.shape != (1,) or rows.dtype != np.int64 or rows[0] < 0:
            raise ScalesError("rows of channel statistics are damaged", expected="one whole number from 0 on")
        read = cls(len(arrays.get("largest", ())))
        read.rows = int(rows[0])
        read.largest, read._magnitudes, read._squares = (
            _figures(arrays, name, len(read.largest)) for name in ("largest", "magnitudes", "squares")
        )
        return read


def _figures(arrays: Mapping[str, npt.NDArray[Any]], name: str, channels: int) -> Array:
    found = arrays.get(name, np.empty(0))
    sound = found.shape == (channels,) and found.dtype == np.float64
    if not (sound and np.isfinite(found).all() and (found >= 0).all()):
        raise ScalesError(
            f"{name} of channel statistics are damaged", expected=f"{channels or 'some'} numbers from 0 on"
        )
    return found
