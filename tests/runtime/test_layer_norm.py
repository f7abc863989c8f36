"""Our layer normalization inside ONNX Runtime, with the addition before it and the rounding behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.our_operators import RUN_HERE, operator

Array = np.ndarray[Any, Any]

pytestmark = RUN_HERE

EPSILON = 1e-6
STEP = np.asarray(np.float32(0.02))  # 127 of which are less than some
BOTH = {"x": np.float32, "added": np.float32}


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0.5, 2.0, shape).astype(np.float32)


def constants(width: int) -> dict[str, Array | None]:
    return {"weight": drawn(width, seed=1), "bias": drawn(width, seed=2)}


def normalized(x: Array, width: int) -> Array:
    x = x.astype(np.float64)
    off = x - x.mean(-1, keepdims=True)
    of = constants(width)
    return off / np.sqrt((off**2).mean(-1, keepdims=True) + EPSILON) * of["weight"] + of["bias"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 15), (1, 33, 16), (5, 17), (2, 257, 1408)])
def test_it_is_what_float64_gives(shape: tuple[int, ...], threads: int) -> None:
    width = shape[-1]
    norm = operator(
        "LayerNorm", BOTH, constants(width), gives=[np.float32] * 2, threads=threads, epsilon=EPSILON
    )
    x, added = drawn(*shape, seed=3), drawn(*shape, seed=4)
    total, y = norm(x=x, added=added)
    np.testing.assert_array_equal(total, x + added)
    np.testing.assert_allclose(y, normalized(total, width), rtol=0, atol=5e-6)


def test_what_nobody_asks_for_is_left_out() -> None:
    alone = {"x": np.float32, "": np.float32}
    norm = operator("LayerNorm", alone, constants(64), gives=[None, np.float32], epsilon=EPSILON)
    x = drawn(2, 9, 64)
    (y,) = norm(x=x)
    np.testing.assert_allclose(y, normalized(x, 64), rtol=0, atol=5e-6)

    rounded = {**constants(64), "next_step": STEP}
    norm = operator("LayerNorm", BOTH, rounded, gives=[None, None, np.uint8], epsilon=EPSILON)
    (levels,) = norm(x=x, added=x)
    exact = np.clip(normalized(2 * x, 64) / STEP, -128, 127) + 128
    assert {0, 255} <= set(levels.ravel())
    assert np.abs(levels - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("shape", [(1, 5, 32), (5, 32), (1, 1, 32), (32,)])
def test_rows_that_are_added_to_all_entries_are_given_once(shape: tuple[int, ...]) -> None:
    norm = operator("LayerNorm", BOTH, constants(32), gives=[np.float32] * 2, epsilon=EPSILON)
    x, added = drawn(3, 5, 32), drawn(*shape, seed=4)
    for given in ({"x": x, "added": added}, {"x": added, "added": x}):
        total, y = norm(**given)
        np.testing.assert_array_equal(total, x + added)
        np.testing.assert_allclose(y, normalized(total, 32), rtol=0, atol=5e-6)


def test_rows_far_from_zero_lose_no_digits() -> None:
    x = drawn(1, 4, 1408) + np.float32(1000)
    norm = operator(
        "LayerNorm",
        {"x": np.float32, "": np.float32},
        constants(1408),
        gives=[None, np.float32],
        epsilon=EPSILON,
    )
    np.testing.assert_allclose(norm(x=x)[0], normalized(x, 1408), rtol=0, atol=2e-3)


def test_no_rows_give_none() -> None:
    norm = operator("LayerNorm", BOTH, constants(8), gives=[np.float32] * 2, epsilon=EPSILON)
    none = np.zeros((0, 3, 8), np.float32)
    assert [value.shape for value in norm(x=none, added=none)] == [(0, 3, 8)] * 2


@pytest.mark.parametrize(
    ("x", "added"),
    [((2, 3, 9), (2, 3, 9)), ((2, 3, 8), (2, 4, 8)), ((2, 3, 8), (2, 1, 8)), ((8,), (2, 3, 9))],
)
def test_shapes_that_do_not_fit_are_refused(x: tuple[int, ...], added: tuple[int, ...]) -> None:
    norm = operator("LayerNorm", BOTH, constants(8), gives=[np.float32] * 2, epsilon=EPSILON)
    with pytest.raises(Exception, match="do not fit"):
        norm(x=np.zeros(x, np.float32), added=np.zeros(added, np.float32))
