"""Our int8 products inside ONNX Runtime: exact sums, and what follows them."""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from typing import Any

import numpy as np
import pytest

from tests.runtime.our_operators import RUN_HERE, operator

Array = np.ndarray[Any, Any]

pytestmark = RUN_HERE

STEP, NEXT_STEP = np.float32(0.03), np.float32(0.05)
# Rows, K, N: of every tile, whole and partial panels, K and N of EVA-g and the Q-Former.
SHAPES = [
    (1, 4, 1),
    (5, 64, 17),
    (6, 8, 64),
    (13, 256, 65),
    (257, 1408, 768),
    (48, 768, 3072),
    (7, 6144, 130),
]


def product(
    weight: Array, scales: Array, bias: Array | None, *, rounds: bool = False, gelu: int = 0, threads: int = 1
) -> Callable[..., Array]:
    """levels -> y."""
    steps = {"next_step": np.asarray(NEXT_STEP)} if rounds else {}
    constants = {"weight": weight, "step": np.asarray(STEP), "scales": scales, **steps, "bias": bias}
    kind, gives = ("Int8ProductRounded", np.uint8) if rounds else ("Int8Product", np.float32)
    run = operator(kind, {"levels": np.uint8}, constants, gives=[gives], threads=threads, gelu=gelu)
    return lambda levels: run(levels=levels)[0]


def drawn(rows: int, k: int, n: int) -> tuple[Array, Array, Array, Array]:
    random = np.random.default_rng(rows + k + n)
    levels = random.integers(0, 256, (1, rows, k), np.uint8)
    weight = random.integers(-128, 128, (k, n), np.int8)
    scales = random.uniform(1e-4, 2e-4, n).astype(np.float32) / np.float32(k) ** 0.5
    return levels, weight, scales, random.normal(size=n).astype(np.float32)


def expected(levels: Array, weight: Array, scales: Array, bias: Array | None) -> Array:
    sums = (levels.astype(np.int64) - 128) @ weight.astype(np.int64)
    products = sums.astype(np.float32) * (STEP * scales)
    return products if bias is None else products + bias


def gelu(x: Array) -> Array:
    return x * (0.5 + 0.5 * np.vectorize(erf)(x.astype(np.float64) / np.sqrt(2)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
def test_a_product_is_exact(rows: int, k: int, n: int, threads: int) -> None:
    levels, weight, scales, bias = drawn(rows, k, n)
    found = product(weight, scales, bias, threads=threads)(levels=levels)
    np.testing.assert_array_equal(found, expected(levels, weight, scales, bias))


def test_the_largest_sums_do_not_overflow() -> None:
    k = 65536
    weight = np.full((k, 1), -128, np.int8)
    run = product(weight, np.ones(1, np.float32), None)
    for level in (0, 255):
        found = run(levels=np.full((1, 1, k), level, np.uint8))
        assert found.item() == np.float32((level - 128) * -128 * k) * STEP


def test_rows_of_several_batches_keep_their_shape() -> None:
    levels, weight, scales, _ = drawn(12, 8, 5)
    found = product(weight, scales, None)(levels=levels.reshape(3, 4, 8))
    np.testing.assert_array_equal(found, expected(levels, weight, scales, None).reshape(3, 4, 5))
    none = product(weight, scales, None)(levels=levels.reshape(3, 4, 8)[:0])
    assert none.shape == (0, 4, 5)


def test_gelu_is_that_of_the_error_function() -> None:
    weight = np.ones((4, 1), np.int8)
    scales = np.full(1, 8 / 512 / STEP, np.float32)  # from -8 to 8
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(4, axis=2)
    found = product(weight, scales, None, gelu=1)(levels=levels)
    np.testing.assert_allclose(found, gelu(expected(levels, weight, scales, None)), atol=1.5e-6)


@pytest.mark.parametrize("apply", [0, 1])
def test_rounding_is_that_of_quantize_linear(apply: int) -> None:
    levels, weight, scales, bias = drawn(31, 64, 200)
    scales *= 200  # so that some fall beyond the last level
    found = product(weight, scales, bias, rounds=True, gelu=apply)(levels=levels)
    y = expected(levels, weight, scales, bias)
    exact = (gelu(y) if apply else y) / NEXT_STEP
    levels_of = np.clip(np.rint(exact), -128, 127) + 128
    assert {0, 255} & set(levels_of.ravel())
    tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-3
    assert np.array_equal(found[~tie], levels_of[~tie])
    assert np.abs(found.astype(int) - levels_of).max() <= 1


def test_what_is_not_finite_rounds_to_an_end() -> None:
    weight, scales = np.ones((4, 3), np.int8), np.ones(3, np.float32)
    bias = np.array([np.inf, -np.inf, 1e30], np.float32)
    found = product(weight, scales, bias, rounds=True)(levels=np.zeros((1, 1, 4), np.uint8))
    assert found.ravel().tolist() == [255, 0, 255]


@pytest.mark.parametrize(
    ("weight", "scales", "says"),
    [((6, 2), 2, "multiple of 4"), ((8, 2), 3, "N scales"), ((8, 2, 1), 2, "N scales")],
)
def test_a_weight_that_does_not_fit_is_refused(weight: tuple[int, ...], scales: int, says: str) -> None:
    with pytest.raises(Exception, match=says):
        product(np.ones(weight, np.int8), np.ones(scales, np.float32), None)


def test_levels_of_another_width_are_refused() -> None:
    run = product(np.ones((8, 2), np.int8), np.ones(2, np.float32), None)
    with pytest.raises(Exception, match=r"(?i)levels"):
        run(levels=np.zeros((1, 1, 4), np.uint8))
