"""Our attention inside ONNX Runtime gives what float64 gives, for all shapes, sizes of scores and batches."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.our_operators import RUN_HERE, operator

pytestmark = RUN_HERE

Array = NDArray[np.float32]
RELATIVE = 2e-6  # of the norm: float32, 4,096 keys added up in blocks


def attended(q: Array, k: Array, v: Array, *, heads: int, scale: float, threads: int = 1) -> Array:
    values = dict.fromkeys("qkv", np.float32)
    attend = operator("Attention", values, {}, gives=[np.float32], threads=threads, heads=heads, scale=scale)
    return attend(q=q, k=k, v=v)[0]


def attended_in_float64(q: Array, k: Array, v: Array, *, heads: int, scale: float) -> NDArray[np.float64]:
    by_head = [x.astype(np.float64).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (q, k, v)]
    scores = scale * by_head[0] @ by_head[1].swapaxes(2, 3)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ by_head[2]
    return mixed.swapaxes(1, 2).reshape(q.shape)


def random_rows(batch: int, rows: int, width: int, *, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((batch, rows, width)).astype(np.float32)


def assert_near(got: NDArray, expected: NDArray[np.float64], relative: float = RELATIVE) -> None:
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) <= relative * np.linalg.norm(expected)


@pytest.mark.parametrize("keys", [1, 31, 257, 320, 321, 1000])
@pytest.mark.parametrize("queries", [1, 16, 17, 32, 48, 50, 257])
@pytest.mark.parametrize("head_width", [8, 24, 64, 88])
def test_it_is_what_float64_gives(queries: int, keys: int, head_width: int) -> None:
    width = 3 * head_width
    q = random_rows(2, queries, width, seed=queries)
    k, v = random_rows(2, keys, width, seed=keys), random_rows(2, keys, width, seed=keys + 1)
    options = {"heads": 3, "scale": head_width**-0.5}
    assert_near(attended(q, k, v, **options), attended_in_float64(q, k, v, **options))


def test_thousands_of_keys_cost_no_digits() -> None:
    q, k, v = (random_rows(1, rows, 64, seed=rows + i) for i, rows in enumerate((32, 4096, 4096)))
    assert_near(attended(q, k, v, heads=1, scale=0.125), attended_in_float64(q, k, v, heads=1, scale=0.125))


@pytest.mark.parametrize("keys", [257, 1000])
def test_scores_of_ten_thousand_overflow_nothing(keys: int) -> None:
    # Whole numbers of which all products and sums are exact: only the weights are rounded.
    q, k = (np.round(20 * random_rows(1, rows, 64, seed=rows)) for rows in (33, keys))
    v = random_rows(1, keys, 64, seed=5)
    expected = attended_in_float64(q, k, v, heads=1, scale=1.0)
    assert np.abs(q @ k.swapaxes(1, 2)).max() > 1e4
    assert_near(attended(q, k, v, heads=1, scale=1.0), expected)


def test_the_largest_score_may_come_with_any_key() -> None:
    q, k, v = (random_rows(1, rows, 8, seed=rows + i) for i, rows in enumerate((1, 700, 700)))
    for largest in (0, 319, 320, 639, 640, 699):
        peaked = k.copy()
        peaked[0, largest] = 300 * q[0, 0]
        np.testing.assert_allclose(attended(q, peaked, v, heads=1, scale=1.0)[0, 0], v[0, largest], rtol=1e-6)


def test_equal_scores_give_the_mean_of_the_values() -> None:
    q, v = random_rows(1, 5, 24, seed=1), random_rows(1, 257, 24, seed=2)
    mixed = attended(q, np.zeros_like(v), v, heads=3, scale=1.0)
    np.testing.assert_allclose(mixed[0], np.tile(v[0].mean(0), (5, 1)), rtol=0, atol=1e-6)


def test_one_key_gives_its_value_itself() -> None:
    q, k, v = (random_rows(2, rows, 128, seed=i) for i, rows in enumerate((40, 1, 1)))
    np.testing.assert_array_equal(attended(q, k, v, heads=2, scale=0.125), np.repeat(v, 40, axis=1))


def test_a_batch_changes_no_bit() -> None:
    q, k, v = (random_rows(3, rows, 176, seed=i) for i, rows in enumerate((257, 257, 257)))
    together = attended(q, k, v, heads=2, scale=0.1)
    for i in range(3):
        one = slice(i, i + 1)
        alone = attended(q[one].copy(), k[one].copy(), v[one].copy(), heads=2, scale=0.1)
        np.testing.assert_array_equal(together[one], alone)


def test_a_query_changes_no_other() -> None:
    q, k, v = (random_rows(1, rows, 64, seed=i) for i, rows in enumerate((50, 257, 257)))
    before = attended(q, k, v, heads=1, scale=0.125)
    q[0, 49] = np.nan
    after = attended(q, k, v, heads=1, scale=0.125)
    np.testing.assert_array_equal(after[0, :49], before[0, :49])
    assert np.isnan(after[0, 49]).all()


@pytest.mark.parametrize("where", [0, 100, 256])
def test_a_key_that_is_no_number_is_not_passed_over(where: int) -> None:
    q, k, v = (random_rows(1, rows, 64, seed=i) for i, rows in enumerate((32, 257, 257)))
    k[0, where, 3] = np.nan
    assert np.isnan(attended(q, k, v, heads=1, scale=0.125)).all()


def test_threads_change_no_bit() -> None:
    q, k, v = (random_rows(3, 50, 176, seed=i) for i in range(3))
    one, two = (attended(q, k, v, heads=2, scale=0.1, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_biases_are_added_to_queries_and_to_what_is_mixed() -> None:
    q, k, v = (random_rows(2, rows, 176, seed=i) for i, rows in enumerate((33, 40, 40)))
    biases = {name: random_rows(1, 1, 176, seed=i)[0, 0] for i, name in enumerate(("q_bias", "mixed_bias"))}
    values = dict.fromkeys("qkv", np.float32)
    attend = operator("Attention", values, biases, gives=[np.float32], heads=2, scale=0.1)
    expected = attended_in_float64(q + biases["q_bias"], k, v, heads=2, scale=0.1) + biases["mixed_bias"]
    assert_near(attend(q=q, k=k, v=v)[0], expected)


def test_queries_keys_and_values_may_lie_in_joined_rows() -> None:
    joined = random_rows(2, 50, 3 * 176, seed=3)
    attend = operator("Attention", {"q": np.float32}, {}, gives=[np.float32], heads=2, scale=0.1)
    q, k, v = np.split(joined, 3, axis=2)
    apart = attended(
        np.ascontiguousarray(q), np.ascontiguousarray(k), np.ascontiguousarray(v), heads=2, scale=0.1
    )
    np.testing.assert_array_equal(attend(q=joined)[0], apart)


def test_what_is_mixed_is_rounded_as_quantize_linear_does() -> None:
    joined, bias = random_rows(2, 50, 3 * 176, seed=3), random_rows(1, 1, 176, seed=4)[0, 0]
    step = np.asarray(np.float32(0.01))  # 127 of which are less than some
    left_out = {"k": None, "v": None, "q_bias": None}
    options = {"heads": 2, "scale": 0.1}
    exact = operator(
        "Attention", {"q": np.float32}, {**left_out, "mixed_bias": bias}, gives=[np.float32], **options
    )
    rounded = operator(
        "AttentionRounded",
        {"q": np.float32},
        {**left_out, "mixed_bias": bias, "next_step": step},
        gives=[np.uint8],
        **options,
    )
    levels = exact(q=joined)[0] / step
    found = rounded(q=joined)[0]
    assert {0, 255} <= set(found.ravel())
    assert np.abs(found - (np.clip(levels, -128, 127) + 128)).max() <= 0.5 + 1e-4


def test_no_frames_give_no_rows() -> None:
    none = np.zeros((0, 4, 64), np.float32)
    assert attended(none, none, none, heads=1, scale=1.0).shape == (0, 4, 64)


@pytest.mark.parametrize(
    ("q", "k", "v", "heads"),
    [
        ((1, 4, 64), (2, 4, 64), (2, 4, 64), 1),
        ((1, 4, 64), (1, 4, 32), (1, 4, 64), 1),
        ((1, 4, 64), (1, 4, 64), (1, 5, 64), 1),
        ((1, 4, 60), (1, 4, 60), (1, 4, 60), 1),
        ((1, 4, 64), (1, 4, 64), (1, 4, 64), 3),
        ((1, 4, 64), (1, 4, 64), (1, 4, 64), 0),
        ((1, 4, 0), (1, 4, 0), (1, 4, 0), 1),
        ((1, 4, 64), (1, 4, 64), (1, 4, 64), 2**61),
        ((1, 4, 64), (1, 0, 64), (1, 0, 64), 1),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], heads: int
) -> None:
    arrays = [np.zeros(shape, np.float32) for shape in (q, k, v)]
    with pytest.raises(Exception, match=r"k and v|multiple of 8|at least one head"):
        attended(*arrays, heads=heads, scale=1.0)
