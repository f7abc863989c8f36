"""Our int4 products inside ONNX Runtime: rounded by block, exact within one, added up over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llamavid.formats.int4 import packed_int4
from tests.runtime.our_operators import RUN_HERE, operator

Array = np.ndarray[Any, Any]

pytestmark = RUN_HERE

# Rows, K, N, block: of every tile, chunks of few and of many rows, whole and partial panels.
SHAPES = [
    (1, 32, 2, 32),
    (1, 1024, 130, 128),
    (2, 64, 64, 64),
    (5, 512, 66, 256),
    (6, 96, 62, 32),
    (7, 384, 192, 128),
    (64, 1408, 100, 64),
    (257, 512, 258, 256),
    (257, 11008, 66, 128),
    (600, 32, 64, 32),
]
SUMMED = 3e-7  # of the sum of the blocks' sizes: float32, in another order and fused


def product(weight: Array, scales: Array, *, threads: int = 1) -> Callable[[Array], Array]:
    """weight: bytes [K, N / 2]. x -> y."""
    constants = {"weight": weight, "scales": scales}
    run = operator("Int4Product", {"x": np.float32}, constants, gives=[np.float32], threads=threads)
    return lambda x: run(x=x)[0]


def bytes_of(levels: Array) -> Array:
    return packed_int4(levels).reshape(len(levels), -1)


def drawn(rows: int, k: int, n: int, block: int) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(rows + k + n + block)
    x = random.normal(size=(1, rows, k)).astype(np.float32)
    levels = random.integers(-8, 8, (k, n), np.int8)
    return x, levels, random.uniform(1e-3, 2e-3, (k // block, n)).astype(np.float32)


def by_block(x: Array, levels: Array, scales: Array) -> Array:
    """[..., K / block, N], float64: each block's exact sum times both scales."""
    blocks, n = scales.shape
    of_blocks = x.reshape(*x.shape[:-1], blocks, -1)
    largest = np.abs(of_blocks).max(axis=-1, keepdims=True)
    per_1 = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded = np.rint(of_blocks * per_1)
    assert np.abs(rounded).max(initial=0) <= 127
    sums = np.einsum("...bk,bkn->...bn", rounded, levels.reshape(blocks, -1, n).astype(np.float64))
    return sums * (largest / np.float32(127)).astype(np.float64) * scales


def assert_product(found: Array, x: Array, levels: Array, scales: Array) -> None:
    terms = by_block(x, levels, scales)
    assert found.shape == (*x.shape[:-1], scales.shape[1])
    assert np.all(np.abs(found - terms.sum(axis=-2)) <= SUMMED * np.abs(terms).sum(axis=-2))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "k", "n", "block"), SHAPES)
def test_blocks_are_rounded_multiplied_and_added_up(
    rows: int, k: int, n: int, block: int, threads: int
) -> None:
    x, levels, scales = drawn(rows, k, n, block)
    found = product(bytes_of(levels), scales, threads=threads)(x)
    assert_product(found, x, levels, scales)


def test_a_row_alone_has_the_same_bits_as_among_others() -> None:
    x, levels, scales = drawn(257, 640, 130, 64)
    opened = product(bytes_of(levels), scales)
    together = opened(x)
    for start, end in ((0, 1), (100, 107), (255, 257)):
        alone = opened(x[:, start:end])
        np.testing.assert_array_equal(alone, together[:, start:end])


def test_rows_of_several_batches_keep_their_shape() -> None:
    x, levels, scales = drawn(12, 64, 6, 32)
    opened = product(bytes_of(levels), scales)
    found = opened(x.reshape(3, 4, 64))
    assert_product(found, x.reshape(3, 4, 64), levels, scales)
    none = opened(x.reshape(3, 4, 64)[:0])
    assert none.shape == (0, 4, 6)


def test_products_of_one_thread_in_turn_do_not_disturb_each_other() -> None:
    """They round into the same memory."""
    first, second = drawn(40, 64, 6, 32), drawn(3, 512, 66, 128)
    opened = [product(bytes_of(levels), scales) for _, levels, scales in (first, second)]
    for _ in range(2):
        for (x, levels, scales), one in zip((first, second), opened, strict=True):
            assert_product(one(x), x, levels, scales)


def test_rows_and_blocks_of_zeros_give_zeros() -> None:
    x, levels, scales = drawn(9, 128, 10, 32)
    x[:, 3] = 0
    x[:, :, 32:64] = 0
    x[:, 4] = 1e-42  # below every normal number
    found = product(bytes_of(levels), scales)(x)
    assert not found[:, 3:5].any()
    rest = [0, 1, 2, 5, 6, 7, 8]
    assert_product(found[:, rest], x[:, rest], levels, scales)


def test_the_largest_sums_are_exact() -> None:
    for sign in (-1, 1):
        x = np.full((1, 7, 512), sign * 1e30, np.float32)
        levels = np.full((512, 2), -8, np.int8)
        found = product(bytes_of(levels), np.ones((2, 2), np.float32))(x)
        np.testing.assert_allclose(found, np.full((1, 7, 2), -8 * 512 * sign * 1e30), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_row_alone(value: float) -> None:
    x, levels, scales = drawn(8, 64, 6, 32)
    x[0, 2, 40] = value
    found = product(bytes_of(levels), scales)(x)
    assert not np.isfinite(found[:, 2]).any()
    rest = [0, 1, 3, 4, 5, 6, 7]
    assert_product(found[:, rest], x[:, rest], levels, scales)


@pytest.mark.parametrize(
    ("weight", "scales", "says"),
    [
        ((64, 2), (2, 6), "N / 2"),
        ((64, 2), (4,), "N / 2"),
        ((64, 2, 1), (2, 4), "N / 2"),
        ((64, 2), (4, 4), "whole blocks"),
        ((100, 2), (3, 4), "whole blocks"),
        ((0, 2), (0, 4), "whole blocks"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused(
    weight: tuple[int, ...], scales: tuple[int, ...], says: str
) -> None:
    with pytest.raises(Exception, match=says):
        product(np.zeros(weight, np.uint8), np.ones(scales, np.float32))


def test_rows_of_another_width_are_refused() -> None:
    opened = product(np.zeros((64, 2), np.uint8), np.ones((2, 4), np.float32))
    with pytest.raises(Exception, match=r"(?i)(row of x|dimension)"):
        opened(np.zeros((1, 1, 32), np.float32))
