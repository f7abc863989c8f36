"""Which vector is chosen: one that makes rounding better, or none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from llamavid.calibration.histogram import ChannelStatistics
from llamavid.calibration.migration import LARGEST_RATIO, chosen_divisor
from llamavid.formats.eight_bits import EightBits
from llamavid.formats.matrices import rounded_matrix

Array = npt.NDArray[np.float32]
CHANNELS, OUTPUTS = 96, 64


def drawn(outliers: float, seed: int = 0) -> tuple[Array, ChannelStatistics, list[Array]]:
    """A sample, what was seen of all of it, and two weights; three channels are `outliers` times as large."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (400, CHANNELS)).astype(np.float32)
    x[:, [5, 40, 41]] *= outliers
    channels = ChannelStatistics(CHANNELS)
    channels.add(torch.from_numpy(x))
    weights = [rng.normal(0, 0.1, (OUTPUTS, CHANNELS)).astype(np.float32) for _ in range(2)]
    return x[:128], channels, weights


def error(
    format: str, x: Array, channels: ChannelStatistics, weight: Array, divisor: Array | None = None
) -> float:
    """Of the rounded product, relative; computed here in another way than the search does."""
    s = np.ones(CHANNELS, np.float32) if divisor is None else divisor
    importance = (channels.mean_square / s**2).astype(np.float32)
    rounded = rounded_matrix((weight * s).T, format, block=32, importance=importance)
    entering = x / s
    if format != "int4":
        step = np.float32((channels.largest / s).max() / EightBits(format).largest)
        entering = EightBits(format).nearest(entering / step) * step
    exact = x @ weight.T
    return float(np.linalg.norm(entering @ rounded - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(("format", "gain"), [("int8", 3.0), ("int4", 1.3)])
def test_outlier_channels_cost_less_after_it(format: str, gain: float) -> None:
    x, channels, weights = drawn(outliers=60)
    divisor = chosen_divisor(x, channels, weights, format, block=32)
    assert divisor is not None
    others = np.delete(divisor, [5, 40, 41])
    assert divisor[[5, 40, 41]].min() > others.max()
    for weight in weights:
        assert error(format, x, channels, weight, divisor) * gain < error(format, x, channels, weight)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_the_model_is_left_alone_where_nothing_is_to_gain(format: str) -> None:
    """Inputs whose channels are alike, and weights whose columns are: every vector would be chance."""
    x, _, weights = drawn(outliers=1)
    x = np.sign(x)
    channels = ChannelStatistics(CHANNELS)
    channels.add(torch.from_numpy(x))
    assert chosen_divisor(x, channels, [np.sign(one) for one in weights], format, block=32) is None


@pytest.mark.parametrize("format", ["int8", "fp8", "int4"])
def test_vectors_are_bounded_and_above_zero_whatever_the_channels(format: str) -> None:
    """A channel that is always 0, one a million times the others, a weight column of zeros."""
    x, channels, weights = drawn(outliers=1e6)
    x[:, 7] = 0
    channels.largest[7] = 0
    weights[0][:, 9] = weights[1][:, 9] = 0
    divisor = chosen_divisor(x, channels, weights, format, block=32)
    if divisor is not None:
        assert divisor.dtype == np.float32
        assert divisor.min() >= 1 / LARGEST_RATIO
        assert divisor.max() <= LARGEST_RATIO


def test_the_choice_does_not_depend_on_how_large_the_input_is() -> None:
    x, _, weights = drawn(outliers=30)
    larger = ChannelStatistics(CHANNELS)
    larger.add(torch.from_numpy(np.concatenate([x] * 3)) * 1024)
    smaller = ChannelStatistics(CHANNELS)
    smaller.add(torch.from_numpy(np.concatenate([x] * 3)))
    one, other = (
        chosen_divisor(sample, seen, weights, "int8") for sample, seen in ((x, smaller), (x * 1024, larger))
    )
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one, other, rtol=1e-6)
