"""What a person sees while a command works: progress and remarks on stderr, results on stdout.

On a terminal progress is a bar; elsewhere it is a line when the work turns to
something else and every half minute, so that a log stays readable. Imports rich only when a bar is drawn.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

import click

_BAR_AFTER_SECONDS = 0.3  # quick work draws no bar, and does not pay for one
_LINE_EVERY_SECONDS = 30  # in a log, while the same work goes on


def remark(text: str) -> None:
    """A line for people, on stderr."""
    click.secho(text, err=True, dim=True)


def error_line(message: str) -> None:
    """The one line that a failed command ends with."""
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)


def printable(text: str) -> str:
    """`text` without what a terminal would take as a command: an answer is text, whatever the model says."""
    if not sys.stdout.isatty():
        return text
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


class Progress:
    """Shows what is going on. `update` may be called as often as wanted."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._said, self._said_at = "", 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar away, before results are printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, what: str, done: int, total: int | None, detail: str = "") -> None:
        """`done` of `total` (None: unknown) of `what`; `detail` is how it stands."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._draw(f"{what} {detail}".rstrip(), done, total)
        elif what != self._said:
            self._said, self._said_at = what, time.monotonic()
            click.echo(f"{what} ...", err=True)
        elif time.monotonic() - self._said_at > _LINE_EVERY_SECONDS:
            self._said_at = time.monotonic()
            click.echo(f"{what} {done}{f'/{total}' if total else ''} {detail}".rstrip(), err=True)

    def _draw(self, what: str, done: int, total: int | None) -> None:
        if self._bar is None:
            if time.monotonic() - self._start < _BAR_AFTER_SECONDS:
                return
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)
        self._bar.update(self._task, description=what, completed=done, total=total)
