"""Thresholds are where they do least harm, and sane where a histogram is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamavid.calibration.histogram import Histogram
from llamavid.calibration.observers import Observer, expected_squares, step
from llamavid.errors import ScalesError, UsageError
from llamavid.formats.eight_bits import EightBits

FORMATS = list(EightBits)
CLIPPING = [Observer.ENTROPY, Observer.MEAN_SQUARED_ERROR]


def counted(values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def gaussian(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def squares(values: torch.Tensor, format: EightBits, largest: float) -> float:
    """Rounds every value by itself."""
    exact, scale = values.double().numpy(), largest / format.largest
    return float(np.mean((format.nearest(np.float32(exact / scale)) * np.float64(scale) - exact) ** 2))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("observer", list(Observer))
def test_the_last_level_stands_for_the_threshold(observer: Observer, format: EightBits) -> None:
    found = step(observer, counted(gaussian(10_000)), format)
    assert found.scale * format.largest == pytest.approx(found.largest)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("observer", list(Observer))
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30).filter(any))
def test_no_threshold_is_zero_or_above_the_largest(
    observer: Observer, format: EightBits, values: list[float]
) -> None:
    histogram = counted(torch.tensor(values))
    assert 0 < step(observer, histogram, format).largest <= histogram.largest


def test_the_absolute_maximum_clips_nothing() -> None:
    values = gaussian(1000)
    assert step(Observer.ABSOLUTE_MAXIMUM, counted(values), EightBits.INT8).largest == float(
        values.abs().max()
    )


@pytest.mark.parametrize("percent", [50.0, 99.0, 99.99])
def test_a_percentile_is_that_of_the_values(percent: float) -> None:
    values = gaussian(200_000)
    found = step(Observer.PERCENTILE, counted(values), EightBits.INT8, percentile=percent).largest
    # One bin of 8 / 2048; at 99.99 some 20 values lie above.
    assert found == pytest.approx(np.percentile(values.abs().numpy(), percent), abs=8 / 2048)


@pytest.mark.parametrize("percent", [0.0, -1.0, 101.0, float("nan")])
def test_a_percentile_that_cannot_be_is_refused(percent: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        step(Observer.PERCENTILE, counted(gaussian(10)), EightBits.INT8, percentile=percent)


@pytest.mark.parametrize("observer", list(Observer))
def test_nothing_but_zeros_has_no_step(observer: Observer) -> None:
    with pytest.raises(ScalesError, match="is 0 in all that was watched"):
        step(observer, counted(torch.zeros(9)), EightBits.INT8)


@pytest.mark.parametrize("format", FORMATS)
def test_the_expected_error_is_the_error_of_rounding_every_value(format: EightBits) -> None:
    values = gaussian(300_000)
    thresholds = np.array([0.5, 1.0, 2.0, 4.0])
    expected = expected_squares(counted(values), format, thresholds)
    # The histogram knows a value to 8 / 2048; e4m3's steps near 0 are finer.
    np.testing.assert_allclose(expected, [squares(values, format, t) for t in thresholds], rtol=0.02)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tails", [2.0, 4.0, 30.0])
def test_no_other_threshold_has_a_smaller_squared_error(format: EightBits, tails: float) -> None:
    torch.manual_seed(0)
    values = torch.distributions.StudentT(tails).sample((100_000,))
    found = step(Observer.MEAN_SQUARED_ERROR, counted(values), format).largest
    others = np.geomspace(0.5, float(values.abs().max()), 60)
    least = min(squares(values, format, float(other)) for other in others)
    assert squares(values, format, found) <= 1.05 * least


@pytest.mark.parametrize("observer", CLIPPING)
def test_an_outlier_that_costs_all_others_their_levels_is_clipped(observer: Observer) -> None:
    """At 1,000 times the rest, int8 would round nearly everything to 0."""
    values = torch.cat([gaussian(20_000_000), torch.tensor([1000.0])])
    kept = step(observer, counted(values), EightBits.INT8).largest
    assert 3 < kept < 100
    assert squares(values, EightBits.INT8, kept) < squares(values, EightBits.INT8, 1000) / 10


@pytest.mark.parametrize("observer", CLIPPING)
def test_a_channel_of_outliers_is_kept(observer: Observer) -> None:
    """One channel of 50 at 20 times the others is no accident: a fiftieth of all values."""
    values = gaussian(500_000).reshape(-1, 50)
    values[:, 7] *= 20
    assert step(observer, counted(values), EightBits.INT8).largest > 35


def test_entropy_does_not_take_outlier_channels_for_accidents() -> None:
    """Six of 1,408 channels, a LayerNorm's: where each bin has a level of its own only clipping costs, and
    little of it. Of thresholds as small as that one at 3.4 was chosen, of 218."""
    values = gaussian(1408 * 2000).reshape(-1, 1408)
    values[:, :6] *= torch.tensor([20.0, 25, 30, 40, 50, 60])
    assert step(Observer.ENTROPY, counted(values), EightBits.INT8).largest > 16


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("observer", CLIPPING)
def test_levels_enough_for_all_values_clip_none(observer: Observer, format: EightBits) -> None:
    for values in ([0.75], [0.001, 9.0], [0.0] * 999 + [1.5], [1.0, 2.0, 3.0, 64.0] * 50):
        assert step(observer, counted(torch.tensor(values)), format).largest == max(values)


def test_entropy_of_a_smooth_distribution_keeps_what_matters() -> None:
    """Between 3 and 5 standard deviations of a Gaussian, whatever the number of values."""
    for count in (10_000, 3_000_000):
        assert 3 < step(Observer.ENTROPY, counted(gaussian(count)), EightBits.INT8).largest < 5.5


def test_the_same_values_in_another_order_give_the_same_step() -> None:
    values = gaussian(100_000) ** 3
    for observer in Observer:
        first, second = (step(observer, counted(v), EightBits.FP8) for v in (values, values.flip(0)))
        assert first == second


def product_error(x: torch.Tensor, weight: torch.Tensor, scale: float) -> float:
    rounded = torch.from_numpy(EightBits.INT8.nearest((x / scale).numpy())) * scale
    return float(((rounded - x) @ weight.T).norm() / (x @ weight.T).norm())


@pytest.mark.parametrize("met", [0.0, 0.02, 1.0, 30.0])
def test_output_keeps_an_outlier_channel_as_far_as_its_weights_ask_for_it(met: float) -> None:
    """What the input alone would clip may be what the product is made of; and the other way round."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4000, 64, generator=random), torch.randn(48, 64, generator=random)
    x[:, 5] *= 40
    weight[:, 5] *= met
    histogram = Histogram()
    histogram.add(x, weight.double().square().sum(0))
    errors = {
        observer: product_error(x, weight, step(observer, histogram, EightBits.INT8).scale)
        for observer in Observer
    }
    assert errors[Observer.OUTPUT] <= 1.02 * min(errors.values()), errors


def test_output_without_weights_is_the_squared_error() -> None:
    histogram = counted(torch.randn(1000, generator=torch.Generator().manual_seed(2)))
    found = [
        step(observer, histogram, EightBits.FP8)
        for observer in (Observer.OUTPUT, Observer.MEAN_SQUARED_ERROR)
    ]
    assert found[0] == found[1]
