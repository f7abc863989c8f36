"""What is kept of a watched tensor depends on its values, not on the way they came."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamavid.calibration.histogram import BINS, ChannelStatistics, Histogram
from llamavid.errors import ScalesError

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def counted(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return (a.largest, a.end) == (b.largest, b.end) and bool((a.counts == b.counts).all())


@given(batches=st.lists(st.lists(NUMBERS, max_size=20), max_size=6), seed=st.integers(0, 99))
def test_counts_depend_on_the_values_alone(batches: list[list[float]], seed: int) -> None:
    values = torch.tensor([value for batch in batches for value in batch])
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
    apart = [counted(torch.tensor(batch)) for batch in batches]
    merged = Histogram()
    for histogram in apart:
        merged.merge(histogram)
    assert same(counted(*map(torch.tensor, batches)), counted(shuffled))
    assert same(merged, counted(values))


@given(values=st.lists(NUMBERS, min_size=1, max_size=50))
def test_a_value_lies_in_the_bin_of_its_magnitude(values: list[float]) -> None:
    histogram = counted(torch.tensor(values))
    expected = np.zeros(BINS, np.int64)
    for value in values:
        expected[math.floor(abs(value) / histogram.width)] += 1
    assert (histogram.counts == expected).all()
    assert histogram.largest == max(map(abs, values)) < histogram.end


def test_every_one_of_millions_is_counted() -> None:
    """float32 counts, as `torch.histc` keeps them, stop at 2^24."""
    histogram = counted(torch.full((1, (1 << 24) + 3), 0.75), torch.full((5, 2), -0.1))
    assert histogram.total == (1 << 24) + 13
    assert histogram.counts.max() == (1 << 24) + 3


def test_half_precision_and_strided_tensors_count_as_their_values() -> None:
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert same(counted(values.T), counted(values.float()))


def test_zeros_are_counted_and_leave_nothing_to_scale() -> None:
    histogram = counted(torch.zeros(7), torch.empty(0))
    assert (histogram.largest, histogram.total) == (0, 7)
    assert same(counted(torch.zeros(7), torch.ones(1)), counted(torch.ones(1), torch.zeros(7)))


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "inf")])
def test_what_is_no_number_is_refused_and_nothing_counted(value: float, said: str) -> None:
    histogram, channels = counted(torch.ones(3)), ChannelStatistics(2)
    for watching in (histogram, channels):
        with pytest.raises(ScalesError, match=f"an activation is {said}"):
            watching.add(torch.tensor([[1e6, value]]))
    assert same(histogram, counted(torch.ones(3)))
    assert channels.rows == 0


def test_what_is_saved_is_what_was_counted() -> None:
    histogram, channels = counted(torch.tensor([3.0, -70.0, 0.0])), ChannelStatistics(3)
    channels.add(torch.tensor([[3.0, -70.0, 0.0]]))
    assert same(Histogram.from_arrays(histogram.to_arrays()), histogram)
    read = ChannelStatistics.from_arrays(channels.to_arrays())
    assert (read.rows, read.largest.tolist()) == (1, [3, 70, 0])
    assert (read.mean_square == channels.mean_square).all()
    assert same(Histogram.from_arrays(Histogram().to_arrays()), Histogram())


@pytest.mark.parametrize(
    "change",
    [
        {"counts": np.zeros(7, np.int64)},
        {"counts": np.zeros(BINS, np.float64)},
        {"counts": np.full(BINS, -1)},
        {"counts": np.ones(BINS, np.int64)},  # beyond the bin of its largest
        {"largest": np.array([np.nan])},
        {"largest": np.array([-1.0])},
        {"largest": np.array([1.0, 2.0])},
    ],
)
def test_a_damaged_histogram_is_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ScalesError, match="histogram"):
        Histogram.from_arrays(counted(torch.ones(3)).to_arrays() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": np.array([-1])},
        {"rows": np.zeros(1)},
        {"squares": np.ones(2)},
        {"magnitudes": np.array([1, np.inf, 1])},
        {"largest": np.full(3, -1.0)},
    ],
)
def test_damaged_channel_statistics_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ScalesError, match="channel statistics"):
        ChannelStatistics.from_arrays(ChannelStatistics(3).to_arrays() | change)


def test_channels_are_told_apart_in_any_number_of_batches() -> None:
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(8)
    whole, first, second = (ChannelStatistics(8) for _ in range(3))
    whole.add(rows.reshape(5, 100, 8))
    first.add(rows[:77])
    second.add(rows[77:])
    first.merge(second)
    assert whole.rows == first.rows == 500
    assert (first.largest == rows.abs().amax(0).numpy()).all()
    np.testing.assert_allclose(first.mean_magnitude, rows.double().abs().mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.mean_square, rows.double().square().mean(0), rtol=1e-12)


def test_outlier_channels_are_named_the_largest_first() -> None:
    channels = ChannelStatistics(100)
    rows = torch.rand(50, 100, generator=torch.Generator().manual_seed(0)) + 1
    rows[:, 7] *= 30
    rows[3, 42] = -99
    channels.add(rows)
    assert channels.outliers() == [42, 7]


def test_a_value_weighs_what_its_channel_s_weights_do() -> None:
    """In batches of any size, and after the range has doubled."""
    rows = torch.randn(3000, 37, generator=torch.Generator().manual_seed(0))
    rows[2000] *= 9
    energies = torch.rand(37, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    histogram = Histogram()
    for batch in rows.split(700):
        histogram.add(batch, energies)
    expected = np.zeros(BINS)
    bins = (rows.abs().double() / histogram.width).long().flatten()
    np.add.at(expected, bins.numpy(), energies.repeat(3000).numpy())
    np.testing.assert_allclose(histogram.weighted, expected, rtol=1e-9, atol=1e-12)
    assert histogram.total == rows.numel()
    again = Histogram.from_arrays(histogram.to_arrays())
    assert (again.weighted == histogram.weighted).all()
