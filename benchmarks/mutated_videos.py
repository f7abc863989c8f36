"""A thousand damaged files through `llamavid ask`: each ends in an answer or in one line, within its limits.

    python -m benchmarks.mutated_videos                       all of them, and the report
    python -m benchmarks.mutated_videos --numbers 17 421      these alone; the files stay in build/mutants

Each file meets the command as a user's would: a process of its own, on the embedded model, in an empty home.
Around it stand a watch of the time and of the memory of all the processes that it starts, and a look at what
they leave behind. Linux alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mutants import Mutant, mutant
from benchmarks.mutated_report import publish
from benchmarks.resident import children
from benchmarks.seeds import seeds
from llamavid.runtime.video.decoding import Limits

QUESTION = "What is there?"
# A decoder may be silent for 30 s; an idle machine answers in half a second, a shared one in several.
LIMIT_SECONDS = Limits().stall_seconds + 30
LIMIT_BYTES = Limits().memory_bytes + 2**30  # the decoder's, and what the command holds itself
WATCH_EVERY_SECONDS = 0.01
SETTLE_SECONDS = 2.0  # the decoder ends itself when its pipe closes
KEPT = Path("build/mutants")  # files that failed, or were asked for


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    exit_code: of the command; below 0, the signal that ended it.
    said: the lines on stderr.
    bytes_held: the highest resident size of the command plus that of each process it started, as if all
        were at their highest at once; without the memory file that frames come through, 0.5 GiB at most.
    problems: what must not be; empty when the file ended as it should.
    """

    number: int
    kind: str
    mutation: str
    size: int
    exit_code: int
    said: list[str]
    frames: int
    seconds: float
    cpu_seconds: float
    bytes_held: int
    problems: list[str]

    @property
    def answered(self) -> bool:
        return self.exit_code == 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    made = seeds()
    numbers = options.numbers if options.numbers is not None else range(options.count)
    outcomes = []
    for outcome in all_asked((mutant(made, number, seed=options.seed) for number in numbers), options.jobs):
        outcomes.append(outcome)
        if outcome.problems or options.numbers is not None:
            KEPT.mkdir(parents=True, exist_ok=True)
            kept = mutant(made, outcome.number, seed=options.seed)
            (KEPT / str(outcome.number)).write_bytes(kept.data)
            print(json.dumps(outcome.__dict__, indent=1), flush=True)
        elif len(outcomes) % 50 == 0:
            print(f"{len(outcomes)} of {len(numbers)}", file=sys.stderr, flush=True)
    if options.numbers is None:
        limits = {"seconds": LIMIT_SECONDS, "bytes": LIMIT_BYTES}
        publish([outcome.__dict__ for outcome in outcomes], seed=options.seed, limits=limits)
    return int(any(outcome.problems for outcome in outcomes))


def all_asked(mutants: Iterable[Mutant], jobs: int) -> Iterator[Outcome]:
    """In their order, `jobs` at once, each from a process that has no other children."""
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_adopt_orphans
    ) as pool:
        yield from pool.map(_asked, mutants)


def _asked(one: Mutant) -> Outcome:
    """One file through the command. Orphans of it become children of this process."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        home, file = Path(folder, "home"), Path(folder, "file")
        home.mkdir()
        file.write_bytes(one.data)
        command = [sys.executable, "-m", "llamavid", "ask", str(file), QUESTION]
        with open(f"{folder}/out", "w+b") as out, open(f"{folder}/said", "w+b") as said:
            started = time.monotonic()
            process = subprocess.Popen(
                [*command, "--max-new-tokens", "4", "--json"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=said,
                cwd=home,
                env={**os.environ, "HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)},
                start_new_session=True,
            )
            problems, cpu_seconds, bytes_held = _watched(process)
            seconds = time.monotonic() - started
            out.seek(0)
            said.seek(0)
            printed, lines = out.read(), said.read().decode("utf-8", "replace").splitlines()
        problems += [f"a process is left: {left}" for left in _left_processes()]
        problems += [f"a file is left: {left.name}" for left in home.rglob("*")]
    assert process.returncode is not None
    frames, wrong = _judged(process.returncode, printed, lines)
    return Outcome(
        *(one.number, one.kind, one.mutation, len(one.data), process.returncode, lines, frames),
        *(round(seconds, 3), round(cpu_seconds, 3), bytes_held, problems + wrong),
    )


def _watched(process: subprocess.Popen[bytes]) -> tuple[list[str], float, int]:
    """Until it ends: what it broke of the limits, its processor time and memory."""
    problems: list[str] = []
    highest: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        for pid in _tree(process.pid):
            highest[pid] = max(highest.get(pid, 0), _highest_resident(pid))
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            problems.append(f"it took more than {LIMIT_SECONDS:g} s")
            process.kill()
            deadline = math.inf
        if sum(highest.values()) > LIMIT_BYTES and "memory" not in problems[-1:]:
            problems.append(f"it held more than {LIMIT_BYTES} bytes")
            process.kill()
        time.sleep(WATCH_EVERY_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    return problems, usage.ru_utime + usage.ru_stime, sum(highest.values())


def _judged(exit_code: int, printed: bytes, lines: list[str]) -> tuple[int, list[str]]:
    """Frames that were seen, and what is wrong: an answer is one document, a refusal is one line."""
    problems = []
    errors = [line for line in lines if line.startswith("error: ")]
    if any("Traceback" in line for line in lines):
        problems.append("a traceback")
    if not all(line.isprintable() for line in lines):
        problems.append("it says what a terminal would take as a command")
    if exit_code == 0:
        frames, wrong = _document_checked(printed)
        return frames, problems + wrong + ["an error line beside an answer"] * bool(errors)
    if exit_code not in (1, 2):
        problems.append(f"exit code {exit_code}")
    if len(errors) != 1 or lines[-1:] != errors:
        problems.append(f"{len(errors)} error lines")
    if printed:
        problems.append("a failure that prints results")
    return 0, problems


def _document_checked(printed: bytes) -> tuple[int, list[str]]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} in a document")

    try:
        document: dict[str, Any] = json.loads(printed, parse_constant=refuse)
        frames = document["frames"]
        times = [float(frame["pts_seconds"]) for frame in frames]
        spent = [float(value) for value in document["timings_ms"].values()]
        if (
            not frames
            or not all(map(math.isfinite, [*times, *spent]))
            or not isinstance(document["answer"], str)
        ):
            raise ValueError("no frames, or a time that is not finite")
    except (ValueError, KeyError, TypeError) as error:
        return 0, [f"no document of an answer ({error!r})"]
    return len(frames), []


# Processes


def _adopt_orphans() -> None:
    """A process whose parent is gone becomes this one's child, and is found."""
    PR_SET_CHILD_SUBREAPER = 36  # noqa: N806
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("orphans cannot be watched here")


def _left_processes() -> list[str]:
    """Commands of the children that are still there a moment after the end; they are ended."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (left := list(children(os.getpid()))) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(WATCH_EVERY_SECONDS)
    names = []
    for pid in left:
        with suppress(OSError):
            names.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return names


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _tree(child)


def _highest_resident(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.mutated_videos", description=__doc__)
    made.add_argument("--count", type=int, default=1000)
    made.add_argument("--seed", type=int, default=0, help="of the mutations")
    made.add_argument("--jobs", type=int, default=2, help="files at once")
    made.add_argument("--numbers", type=int, nargs="+", help="these alone, without a report")
    return made


if __name__ == "__main__":
    sys.exit(main())
