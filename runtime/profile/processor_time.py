"""Processor time so far: the whole machine's, what a virtual machine's host took of it, and ours.

Ours is that of this process and of all that it started, which decode videos or compile kernels, alive or
ended. Told by Linux in `/proc`; elsewhere the machine's is 0, and ours lacks processes that are alive.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds of all cores together."""

    at: float
    busy: float
    stolen: float
    own: float

    @classmethod
    def now(cls) -> ProcessorTime:
        ticks = [int(word) / _ticks() for word in _text(_PROC / "stat").split("\n", 1)[0].split()[1:9]]
        user, nice, system, _, _, interrupts, soft, stolen = ticks if len(ticks) == 8 else [0.0] * 8
        own = os.times()
        ended = own.children_user + own.children_system
        alive = sum(map(_seconds, _started_by("self")))
        busy = user + nice + system + interrupts + soft
        return cls(time.monotonic(), busy, stolen, own.user + own.system + ended + alive)

    def since(self, before: ProcessorTime) -> tuple[float, float, float]:
        """Parts of all cores' time that others used and that were stolen; and how many cores were ours."""
        spent = self.at - before.at
        whole, own = spent * (os.cpu_count() or 1), self.own - before.own
        return (self.busy - before.busy - own) / whole, (self.stolen - before.stolen) / whole, own / spent


def _started_by(process: str) -> Iterator[str]:
    """Its processes that are alive, theirs among them."""
    try:
        threads = os.listdir(_PROC / process / "task")
    except OSError:  # it has ended meanwhile
        return
    for thread in threads:
        for child in _text(_PROC / process / "task" / thread / "children").split():
            yield child
            yield from _started_by(child)


def _seconds(process: str) -> float:
    """Of one process, and of those that it started and that have ended; 0 where it has ended meanwhile."""
    fields = (
        _text(_PROC / process / "stat").rpartition(")")[2].split()
    )  # behind its name, which may be anything
    return sum(map(int, fields[11:15])) / _ticks()


def _ticks() -> int:
    """A second."""
    return os.sysconf("SC_CLK_TCK")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
