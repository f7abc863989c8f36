"""What a run has found so far, written to disk after every figure: a run that is cut leaves what it has.

Takes rows (Table 9's columns of one variant at one batch), values (everything else), and what could not be
measured, by name. Knows where they go and whether they count; `page.py` makes a page of the JSON.

Note [Void]
    A figure whose result is wrong does not count. It stays in the JSON, under its reason, so that what was
    wrong can be found; the page shows the reason in its place, and nothing is derived from it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.errors import WHOLE, why_void
from benchmarks.gpu.page import page
from llamavid.replacing import replacing
from llamavid.runtime.profile.figures import Figure

_OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Row:
    """One variant at one batch: milliseconds a frame of each module, and of all in one go (`whole`)."""

    variant: str
    precision: str
    batch: int
    columns: Mapping[str, Figure]
    errors: Mapping[str, float]
    bound: float

    @property
    def void(self) -> str:
        modules = {name: error for name, error in self.errors.items() if name != "whole"}
        whole = {name: error for name, error in self.errors.items() if name == "whole"}
        return why_void(modules, self.bound) or why_void(whole, WHOLE * self.bound)

    @property
    def total(self) -> float:
        """The sum of the modules' medians."""
        return sum(figure.median for name, figure in self.columns.items() if name != "whole")


@dataclass(frozen=True)
class Value:
    """One figure of a group; the error is that of its result, where it has one."""

    group: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bound: float = math.inf
    note: str = ""

    @property
    def void(self) -> str:
        return why_void(dict(self.errors), self.bound)


class Report:
    """Grows; `seconds` is how long the whole run may take."""

    def __init__(self, file: Path, machine: Mapping[str, str], settings: Mapping[str, Any], seconds: float):
        """`file` ends in .json; the page goes beside it."""
        self.file, self.seconds = file, seconds
        self.machine, self.settings = dict(machine), dict(settings)
        self.rows: list[Row] = []
        self.values: list[Value] = []
        self.skipped: list[tuple[str, str]] = []
        self.marks: list[str] = []
        self.failed = False
        self._start = time.monotonic()

    @property
    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self._start)

    @property
    def has_void(self) -> bool:
        return any(row.void for row in self.rows) or any(value.void for value in self.values)

    def add(self, found: Row | Value) -> None:
        if isinstance(found, Row):
            self.rows.append(found)
            self.say(f"{found.variant}, batch {found.batch}: {found.void or f'{found.total:.3f} ms a frame'}")
        else:
            self.values.append(found)
            self.say(f"{found.what}: {found.void or f'{found.value:.4g} {found.unit}'}")
        self.save()

    def skip(self, what: str, why: str) -> None:
        self.skipped.append((what, why))
        self.say(f"{what}: skipped, {why}")
        self.save()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.0f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """The block measures `what`. What ends it is told by name, and the next is measured all the same.

        A machine is lent for minutes: one variant that fails on it must not take the others' figures along.
        Anything but missing memory makes the whole run fail in the end, and its traceback is printed.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            self.skip(what, _OUT_OF_MEMORY)
        except Exception as error:
            traceback.print_exc()
            self.failed = True
            self.skip(what, f"failed, {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what graphs that are gone have held

    def has_time(self, what: str, *, seconds: float = 0.0) -> bool:
        """Whether `what`, which takes about so many seconds, can still be measured; told if not."""
        if self.seconds_left > seconds:
            return True
        self.skip(what, f"no time left ({self.seconds_left:.0f} s of {self.seconds:.0f})")
        return False

    def document(self) -> dict[str, Any]:
        return {
            "name": "gpu",
            "machine": self.machine,
            "settings": self.settings,
            "marks": self.marks,
            "rows": [_row_json(row) for row in self.rows],
            "values": [_value_json(value) for value in self.values],
            "skipped": [{"what": what, "why": why} for what, why in self.skipped],
        }

    def save(self) -> None:
        document = self.document()
        for file, text in (
            (self.file, json.dumps(document, indent=1, allow_nan=False)),
            (self.file.with_suffix(".md"), page(document)),
        ):
            with replacing(file) as beside:
                beside.write_text(text + "\n", encoding="utf-8")


def _row_json(row: Row) -> dict[str, Any]:
    columns = {name: dataclasses.asdict(figure) for name, figure in row.columns.items()}
    return {
        "variant": row.variant,
        "precision": row.precision,
        "batch": row.batch,
        "ms_a_frame": columns,
        "total": row.total,
        "errors": _finite(row.errors),
        "bound": row.bound,
        "void": row.void,
    }


def _value_json(value: Value) -> dict[str, Any]:
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    bound = value.bound if math.isfinite(value.bound) else None
    return {**fields, "errors": _finite(value.errors), "bound": bound, "void": value.void}


def _finite(errors: Mapping[str, float]) -> dict[str, float | None]:
    """null is what JSON has for a NaN."""
    return {name: error if math.isfinite(error) else None for name, error in errors.items()}
