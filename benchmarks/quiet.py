"""Comparisons on a machine that others use too: what they disturb is measured again.

    rounds = QuietRounds(patience_s=120)
    spent = rounds.in_turn(sides, 10)
    lines.append(rounds.line)

Other processes do not slow all sides alike: a side whose threads wait for one another at every product, as
llama.cpp's do, loses ten times as much as one that hands work out. So a call during which they had more
than a tenth of the cores is made again, until the patience is spent. What had to be kept is counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Line

LOUD = 0.1  # of all cores
_LOOK_SECONDS = 0.5
# Until the threads of the side before stop spinning: after 0.02 s ONNX Runtime's still did, and a token of
# llama.cpp took 13.8 ms, after 0.3 s 9.8.
_SETTLE_SECONDS = 0.3


class QuietRounds:
    """Measures, and counts what was loud. Linux; elsewhere nothing is loud."""

    def __init__(self, patience_s: float) -> None:
        self._patience = patience_s
        self._calls = self._again = self._loud = 0

    def in_turn(
        self, sides: dict[str, Callable[[], Any]], rounds: int, *, warm_up: bool = True
    ) -> dict[str, list[float]]:
        """Milliseconds of each side, A B A B ..., after one unmeasured round, unless that is not wanted."""
        spent: dict[str, list[float]] = {name: [] for name in sides}
        for run in sides.values() if warm_up else ():
            run()
        for _ in range(rounds):
            for name, run in sides.items():
                spent[name].append(self._milliseconds(run))
        return spent

    @property
    def line(self) -> Line:
        note = f"of {self._calls}; {self._again} were made again"
        return Line(f"calls while others had over {LOUD:.0%} of the cores", self._loud, "", note)

    def _milliseconds(self, run: Callable[[], Any]) -> float:
        self._calls += 1
        while True:
            time.sleep(_SETTLE_SECONDS)
            with _Share() as others:
                start = time.perf_counter()
                run()
                spent = time.perf_counter() - start
            if others.share <= LOUD:
                break
            if self._patience <= 0:
                self._loud += 1
                break
            self._again += 1
            self._patience -= spent
            self._wait()
        return spent * 1000

    def _wait(self) -> None:
        share = 1.0
        while share > LOUD and self._patience > 0:
            with _Share() as others:
                time.sleep(_LOOK_SECONDS)
            share = others.share
            self._patience -= _LOOK_SECONDS


class _Share:
    """How much of all cores other processes had while the `with` block ran."""

    share = 0.0

    def __enter__(self) -> _Share:
        self._before = _clocks()
        return self

    def __exit__(self, *error: object) -> None:
        busy, own, wall = (now - then for now, then in zip(_clocks(), self._before, strict=True))
        self.share = max(0.0, busy - own) / (wall * (os.cpu_count() or 1))


def _clocks() -> tuple[float, float, float]:
    """Seconds: all cores busy, this process at work, the time."""
    return _busy_seconds(), time.process_time(), time.perf_counter()


def _busy_seconds() -> float:
    """Of all cores; waiting for a disk is idle, a host that takes the core away is not."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _waiting, *rest = map(int, stat.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
