"""The table of errors that export and verify print, and the same for --json."""

from __future__ import annotations

import math
from typing import Any

import click

from llamavid.console import Progress


def print_row(progress: Progress, row: Any) -> None:
    """One line of the table on stdout; `row` is a `ParityRow`."""
    progress.close()
    bound = "not judged" if row.tolerance is None else f"<= {row.tolerance:.0e}"
    verdict = click.style("ok  ", fg="green") if row.passed else click.style("FAIL", fg="red")
    figures = (
        f"{row.graph:8} {row.precision:5} {row.norm_error:9.2e} (largest {row.largest_error:.1e}) {bound:10}"
    )
    click.echo(f"{verdict} {figures}  {row.against}: {row.reason}")


def row_document(row: Any) -> dict[str, Any]:
    """For JSON, which has no NaN: an error that is no number is null."""
    from dataclasses import asdict

    return {"passed": row.passed, **{name: finite(value) for name, value in asdict(row).items()}}


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
