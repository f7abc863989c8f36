"""What every benchmark writes: a table for people, one JSON document for machines, and where it was measured.

Machines are shared and noisy, so a comparison runs both sides in turn and quotes
medians and the median of ratios.
"""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ONE_THREAD = ", this process's own time on one thread"  # of a title
_PACKAGES = ("llamavid", "numpy", "onnxruntime", "av", "pillow", "torch", "transformers")
_PEERS = ("openvino", "llama_cpp_python")


@dataclass(frozen=True)
class Line:
    """One figure; None where it could not be measured, and `note` says why."""

    what: str
    value: float | None
    unit: str
    note: str = ""

    @property
    def figure(self) -> str:
        if self.value is None:
            return "skipped"
        digits = ",.0f" if abs(self.value) >= 1e4 else ",.4g"  # 45,800 and not 4.58e+04
        return f"{self.value:{digits}} {self.unit}"


def skipped(what: str, package: str) -> Line:
    """Of a peer that is not there."""
    return Line(what, None, "", f"{package} is not installed (pip install 'llamavid[bench]')")


def machine() -> dict[str, str]:
    """What makes a figure comparable."""
    from llamavid.runtime.doctor import examine

    findings = {
        finding.subject: finding.text for finding in examine() if finding.subject in ("processor", "memory")
    }
    versions = {name: metadata.version(name) for name in _PACKAGES}
    for name in _PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {**findings, "system": platform.platform(), "python": platform.python_version(), **versions}


def in_turn(
    sides: dict[str, Callable[[], Any]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Milliseconds of each side, A B A B ..., after one unmeasured round."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for measured in [False] + [True] * rounds:
        for name, run in sides.items():
            start = clock()
            run()
            if measured:
                spent[name].append((clock() - start) * 1000)
    return spent


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def publish(name: str, title: str, command: str, lines: Sequence[Line]) -> None:
    """Prints the table and writes `results/NAME.md` and `results/NAME.json`."""
    where, table = machine(), _table(lines)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page(title, command, lines, where), encoding="utf-8")
    document = {
        "name": name,
        "title": title,
        "command": command,
        "machine": where,
        "lines": [line.__dict__ for line in lines],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table))


def page(title: str, command: str, lines: Sequence[Line], where: dict[str, str]) -> str:
    """What `results/NAME.md` holds."""
    told = [f"- {key}: {value}" for key, value in where.items()]
    return "\n".join([f"# {title}", "", f"`{command}`", "", *_table(lines), "", *told]) + "\n"


def _table(lines: Sequence[Line]) -> list[str]:
    rows = [f"| {line.what} | {line.figure} | {line.note} |" for line in lines]
    return ["| what | figure | |", "|---|---:|---|", *rows]
