"""Each format has the numbers of its standard, and its rule for weights is never worse than the plain one."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamavid.contract import DType
from llamavid.formats.eight_bits import EightBits, quantize_columns
from llamavid.formats.int4 import dequantized, quantize_int4
from llamavid.formats.matrices import relative_error, rounded_matrix

Array = np.ndarray[Any, Any]


def drawn(*shape: int, tails: float = 3.0, seed: int = 0) -> Array:
    """Heavy-tailed, as weights are."""
    return np.random.default_rng(seed).standard_t(tails, size=shape).astype(np.float32)


def test_fp8_has_exactly_the_numbers_of_e4m3() -> None:
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    finite = every[np.isfinite(every)]
    np.testing.assert_array_equal(EightBits.FP8.nearest(finite), finite)


@settings(max_examples=200)
@given(st.lists(st.floats(-448, 448, width=32), min_size=1, max_size=40))
def test_fp8_rounds_as_the_standard_does(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = array.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(EightBits.FP8.nearest(array), expected)


def test_halves_between_two_fp8_numbers_go_to_the_even_one() -> None:
    numbers = np.unique(np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    between = (numbers[:-1] + numbers[1:]) / 2
    expected = between.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(EightBits.FP8.nearest(between), expected)


@pytest.mark.parametrize("format", EightBits)
def test_what_is_outside_takes_the_last_level(format: EightBits) -> None:
    far = np.array([-1e30, -format.largest - 9, format.largest + 9, 3e38], np.float32)
    expected = [-format.largest, -format.largest, format.largest, format.largest]
    assert format.nearest(far).tolist() == expected


def test_int8_rounds_halves_to_even() -> None:
    assert EightBits.INT8.nearest(np.array([0.5, 1.5, -2.5], np.float32)).tolist() == [0, 2, -2]


@pytest.mark.parametrize("block", [32, 128])
def test_clipping_by_importance_lowers_the_error_that_counts(block: int) -> None:
    """Of the product, for inputs whose channels are of very different size."""
    weight, random = drawn(256, 48), np.random.default_rng(1)
    inputs = (random.normal(size=(500, 256)) * np.geomspace(0.05, 5, 256)).astype(np.float32)
    importance = np.mean(inputs**2, axis=0)
    plain, clipped = (
        np.linalg.norm(inputs @ (weight - dequantized(weight, block, given))) for given in (None, importance)
    )
    assert clipped < 0.93 * plain


def test_clipping_never_costs_a_block_anything() -> None:
    weight, importance = drawn(100, 17, tails=2.0), np.random.default_rng(2).random(100).astype(np.float32)
    errors = [
        np.add.reduceat((weight - dequantized(weight, 32, given)) ** 2 * importance[:, None], [0, 32, 64, 96])
        for given in (None, importance)
    ]
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()


def test_a_matrix_in_pieces_is_clipped_as_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, importance = drawn(64, 40), np.ones(64, np.float32)
    whole = quantize_int4(weight, 32, importance)
    monkeypatch.setattr("llamavid.formats.int4._PIECE", 64 * 7)
    pieces = quantize_int4(weight, 32, importance)
    np.testing.assert_array_equal(whole.levels, pieces.levels)
    np.testing.assert_array_equal(whole.scale, pieces.scale)


def test_each_format_costs_a_matrix_what_its_bits_say() -> None:
    """Of normal weights: int8 and fp8 about one in a hundred, int4 about one in ten."""
    weight = np.random.default_rng(3).normal(size=(512, 64)).astype(np.float32)
    errors = {
        "int8": relative_error(weight, rounded_matrix(weight, "int8")),
        "fp8": relative_error(weight, rounded_matrix(weight, "fp8")),
        "int4": relative_error(weight, rounded_matrix(weight, "int4", block=32)),
    }
    assert 0.005 < errors["int8"] < 0.012
    assert 0.02 < errors["fp8"] < 0.03
    assert 0.07 < errors["int4"] < 0.11
    assert relative_error(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)) == 0


def test_a_matrix_is_restored_from_its_levels() -> None:
    weight = drawn(40, 6)
    quantized = quantize_columns(weight, EightBits.INT8, DType.FLOAT32)
    np.testing.assert_array_equal(quantized.restored, rounded_matrix(weight, "int8"))
