"""How much memory a command holds while it runs: it and its child processes, looked at twice a second."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EVERY_SECONDS = 0.5
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Run:
    """A finished command. Times in seconds since its start, memory in MiB."""

    stdout: str
    seconds: np.ndarray  # float64 [n]
    resident: np.ndarray  # float64 [n], of the command itself, mapped files included
    children: np.ndarray  # float64 [n], of its child processes together

    def growth(self, until_seconds: float = np.inf, *, from_share: float = 0.4) -> float:
        """MiB that it grew by from `from_share` of the time on, along the line of least squares."""
        end = min(until_seconds, self.seconds[-1])
        late = (self.seconds >= from_share * end) & (self.seconds <= end)
        slope = float(np.polyfit(self.seconds[late], self.resident[late], 1)[0])
        return slope * (1 - from_share) * end


def run_llamavid(*arguments: str | Path) -> Run:
    """Runs one command to its end. Raises where it fails."""
    program = [sys.executable, "-m", "llamavid", *map(str, arguments)]
    samples: list[tuple[float, float, float]] = []
    with tempfile.TemporaryFile() as printed, subprocess.Popen(program, stdout=printed) as process:
        start = time.monotonic()
        while process.poll() is None:
            beside = sum(map(_resident_mib, children(process.pid)))
            samples.append((time.monotonic() - start, _resident_mib(process.pid), beside))
            time.sleep(EVERY_SECONDS)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, program)
        printed.seek(0)
        whole = samples[:-1]  # the last one may have caught its end
        return Run(printed.read().decode(), *np.asarray(whole).T)


def _resident_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20
    except (OSError, IndexError):  # it has just ended
        return 0.0


def children(pid: int) -> Iterator[int]:
    """The processes that `pid` started itself; none where it has ended."""
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            yield from map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
