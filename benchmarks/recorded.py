"""Results as they were recorded: `results/NAME.json`, read back. Runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import Line


@dataclass(frozen=True)
class Result:
    """One benchmark's. `document` is the whole file; not every benchmark's has lines."""

    name: str
    title: str
    command: str
    machine: dict[str, str]
    lines: tuple[Line, ...]
    document: dict[str, Any] = field(repr=False)

    def matching(self, pattern: str) -> Iterator[Line]:
        """Lines that were measured, whose `what` is all of `pattern`."""
        return (line for line in self.lines if line.value is not None and re.fullmatch(pattern, line.what))

    @property
    def skipped(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.value is None)

    def groups(self) -> dict[str, dict[str, Line]]:
        """Milliseconds by what was done and who did it: `prefill of 256, llama.cpp` is a line of both."""
        found: dict[str, dict[str, Line]] = {}
        for line in self.lines:
            told = _SIDE_FIRST.fullmatch(line.what) or _SIDE_LAST.fullmatch(line.what)
            if told and line.value is not None and line.unit.startswith("ms"):
                found.setdefault(told["what"], {})[told["side"]] = line
        return {what: sides for what, sides in found.items() if len(sides) > 1}

    def stages(self) -> dict[str, dict[str, dict[str, Line]]]:
        """Of two questions, by model, question and stage: `tiny model, anew: prefill` is a line of them."""
        found: dict[str, dict[str, dict[str, Line]]] = {}
        for line in self.lines:
            told = _STAGE.fullmatch(line.what)
            if told and line.value is not None:
                found.setdefault(told["model"], {}).setdefault(told["question"], {})[told["stage"]] = line
        return found


_SIDE_FIRST = re.compile(r"(?P<side>.+), (?P<what>batch \d+, .+)")
_SIDE_LAST = re.compile(r"(?P<what>.+?), (?P<side>.+)")
_STAGE = re.compile(r"(?P<model>.+), (?P<question>anew|second): (?P<stage>\w+)")


def read_results(folder: Path) -> dict[str, Result]:
    """By file name without its end. Raises `ValueError` for a file that is no JSON object."""
    return {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}


def _read(file: Path) -> Result:
    document = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError(f"{file.name} is no result: a {type(document).__name__}, not an object")
    return Result(
        file.stem,
        document.get("title", file.stem.replace("_", " ")),
        document.get("command", ""),
        document.get("machine", {}),
        tuple(Line(**line) for line in document.get("lines", ())),
        document,
    )
