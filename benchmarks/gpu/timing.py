"""Milliseconds of work on a device: events on a GPU, the host's clock elsewhere.

A round holds as many runs as fill some milliseconds, so that what an event costs does not count and a GPU
is never waited for between them. Work that a CPU cannot hand out fast enough takes as long as handing it out
takes: that is so for its user, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from llamavid.runtime.profile.figures import Figure, figure

Run = Callable[[], object]

WARM_UP = 3  # runs: what is compiled, loaded and allocated at first
ROUND_MS = 4.0  # at least, of a round
_MOST_RUNS = 64  # in a round
_WARM_SECONDS = 1.0


def timed(run: Run, device: torch.device, *, rounds: int = 20) -> Figure:
    """Milliseconds of one run."""
    return in_turn({"": run}, device, rounds=rounds)[""]


def in_turn(sides: Mapping[str, Run], device: torch.device, *, rounds: int = 20) -> dict[str, Figure]:
    """Milliseconds of one run of each side; rounds A B A B ..., so that a clock that falls falls for all."""
    return {name: figure(spent) for name, spent in rounds_in_turn(sides, device, rounds=rounds).items()}


def rounds_in_turn(
    sides: Mapping[str, Run], device: torch.device, *, rounds: int = 20
) -> dict[str, list[float]]:
    """As `in_turn`, every round by itself: those of one place belong together."""
    clock = _milliseconds_on_gpu if device.type == "cuda" else _milliseconds_on_host
    runs = {}
    for name, run in sides.items():
        for _ in range(WARM_UP):
            run()
        once = clock(run, 1)
        runs[name] = max(1, min(_MOST_RUNS, int(ROUND_MS / max(once, 1e-3))))
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            spent[name].append(clock(run, runs[name]) / runs[name])
    return spent


def warm_up(run: Run, device: torch.device) -> None:
    """A second of it: a card that rests has lowered its clock (an H200 from 1980 to 345 MHz)."""
    if device.type != "cuda":
        return
    start = time.monotonic()
    while time.monotonic() - start < _WARM_SECONDS:
        _milliseconds_on_gpu(run, 1)


def _milliseconds_on_gpu(run: Run, times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _milliseconds_on_host(run: Run, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) * 1000
