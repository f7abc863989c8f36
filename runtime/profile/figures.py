"""Milliseconds of many rounds as one figure with its spread. Pure, but `rounds_within` has a clock."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# Of a figure: how far the slow rounds may lie above the fast ones, as a part of the median, before it is
# told. A quarter: what most of our rewrites gain would vanish in more.
WIDE = 0.25


@dataclass(frozen=True)
class Figure:
    """Milliseconds: the median, and the 10th and 90th percentile of the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no rounds give."""
        if not (0 <= self.low <= self.median <= self.high < math.inf) or self.rounds < 1:
            raise ValueError(f"a figure of {self.low}, {self.median}, {self.high} in {self.rounds} rounds")

    @property
    def spread(self) -> float:
        """As a part of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    @property
    def is_wide(self) -> bool:
        return self.spread > WIDE

    def times(self, factor: float) -> Figure:
        return Figure(self.median * factor, self.low * factor, self.high * factor, self.rounds)


def figure(milliseconds: Sequence[float]) -> Figure:
    """Of at least one round."""
    if len(milliseconds) == 1:
        return Figure(*(3 * (milliseconds[0],)), 1)
    tenths = statistics.quantiles(milliseconds, n=10, method="inclusive")
    return Figure(tenths[4], tenths[0], tenths[8], len(milliseconds))


def rounds_within(
    run: Callable[[], T],
    seconds: float,
    *,
    at_least: int = 3,
    at_most: int = 100,
    on_round: Callable[[int, int], None] = lambda done, of: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[T]:
    """What `run` gives, again and again, for about so many seconds.

    The first round warms up and does not count; where it alone takes longer than `seconds`, it counts, and
    there is no other: what warming up costs is nothing beside it.
    """
    start = clock()
    first = run()
    if clock() - start > seconds:
        return [first]
    found = list[T]()
    start = clock()
    while len(found) < at_most and (len(found) < at_least or clock() - start < seconds):
        found.append(run())
        on_round(len(found), at_most)
    return found
