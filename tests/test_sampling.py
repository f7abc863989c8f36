"""From logits to a token: greedy, seeded, cut at top-p, flattened by temperature."""

from __future__ import annotations

import numpy as np
import pytest

from llamavid.errors import UsageError
from llamavid.sampling import Sampler, Sampling

PROBABILITIES = np.array([0.125, 0.5, 0.125, 0.25])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
DRAWS = 4000


def draws(sampling: Sampling, count: int = DRAWS) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.pick(LOGITS) for _ in range(count)]


def frequencies(sampling: Sampling) -> np.ndarray:
    return np.bincount(draws(sampling), minlength=len(LOGITS)) / DRAWS


def test_no_temperature_takes_the_most_likely_token_whatever_the_seed() -> None:
    assert {token for seed in range(5) for token in draws(Sampling(seed=seed), 3)} == {1}


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    first, again, other = (draws(Sampling(temperature=1.0, seed=seed), 20) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_temperature_of_one_draws_by_the_probabilities() -> None:
    np.testing.assert_allclose(frequencies(Sampling(temperature=1.0)), PROBABILITIES, atol=0.03)


def test_a_temperature_of_two_draws_by_their_square_roots() -> None:
    expected = np.sqrt(PROBABILITIES) / np.sqrt(PROBABILITIES).sum()
    np.testing.assert_allclose(frequencies(Sampling(temperature=2.0)), expected, atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, {1}), (0.49, {1}), (0.6, {1, 3}), (0.8, {1, 3, 0}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_most_likely_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    assert set(draws(Sampling(temperature=1.0, top_p=top_p))) == kept


def test_what_top_p_keeps_keeps_its_proportions() -> None:
    expected = [0, 2 / 3, 0, 1 / 3]
    np.testing.assert_allclose(frequencies(Sampling(temperature=1.0, top_p=0.6)), expected, atol=0.03)


def test_an_impossible_token_is_never_drawn() -> None:
    sampler = Sampler(Sampling(temperature=10.0))
    logits = np.array([-np.inf, 0.0, -np.inf], np.float16)
    assert {sampler.pick(logits) for _ in range(50)} == {1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-310])
def test_a_tiny_temperature_is_as_good_as_none(temperature: float) -> None:
    assert set(draws(Sampling(temperature=temperature), 50)) == {1}


@pytest.mark.parametrize("temperature", [-0.1, np.inf, np.nan])
def test_a_temperature_that_cannot_be_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"temperature is .*; expected 0 \(greedy\) or more"):
        Sampling(temperature=temperature)


@pytest.mark.parametrize("top_p", [0.0, -1.0, 1.1, np.nan])
def test_a_top_p_that_cannot_be_is_refused(top_p: float) -> None:
    with pytest.raises(UsageError, match=r"top-p is .*; expected more than 0, at most 1"):
        Sampling(top_p=top_p)
