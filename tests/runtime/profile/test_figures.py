"""Milliseconds to figures: what is warmed up, what is wide."""

from __future__ import annotations

import pytest

from llamavid.runtime.profile.figures import Figure, figure, rounds_within


class Clock:
    """A second passes with each run."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        return self.now

    def run(self) -> float:
        self.now += self.seconds
        return self.now


def test_a_figure_is_the_median_and_how_far_slow_and_fast_rounds_lie() -> None:
    made = figure([*range(1, 12)])
    assert (made.median, made.low, made.high, made.rounds) == (6.0, 2.0, 10.0, 11)
    assert made.spread == pytest.approx(8 / 6)


def test_one_slow_round_among_many_does_not_make_a_figure_wide_but_many_do() -> None:
    assert not figure([10.0] * 19 + [100.0]).is_wide
    assert figure([10.0] * 14 + [100.0] * 6).is_wide


def test_the_first_round_warms_up_and_does_not_count() -> None:
    clock = Clock()
    assert rounds_within(clock.run, 10.0, at_most=4, clock=clock) == [2.0, 3.0, 4.0, 5.0]


def test_rounds_end_with_the_time_but_there_are_always_a_few() -> None:
    clock = Clock(0.5)
    assert len(rounds_within(clock.run, 2.0, at_most=100, clock=clock)) == 4
    clock = Clock()
    assert len(rounds_within(clock.run, 1.5, at_least=3, clock=clock)) == 3


def test_a_first_round_that_takes_all_the_time_is_the_only_one_and_counts() -> None:
    """A frame through EVA-g takes seconds on a CPU, and a batch of 32 minutes."""
    clock = Clock(90.0)
    assert rounds_within(clock.run, 20.0, clock=clock) == [90.0]


@pytest.mark.parametrize("numbers", [(1.0, 2.0, 3.0, 4), (2.0, 1.0, float("nan"), 4), (2.0, 1.0, 3.0, 0)])
def test_what_no_rounds_give_is_no_figure(numbers: tuple[float, float, float, int]) -> None:
    with pytest.raises(ValueError, match="a figure of"):
        Figure(*numbers)
