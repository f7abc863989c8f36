"""What calibration found, for people: figures, a table of them, and three files.

    report = report_of(calibrated, ...)         llamavid.calibration.figures
    write_report(report, folder)                report.json, report.html, report.png
    print(table(report))

Knows nothing of where the figures come from. Sizes are of weights, against float16; errors are relative:
|found - expected| / |expected|, over all elements.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamavid.errors import UsageError
from llamavid.replacing import replacing

JSON, PAGE, PICTURE = "report.json", "report.html", "report.png"
KEPT = "kept"
_SHOWN = 5  # lines of the table


@dataclass(frozen=True)
class Outlier:
    """A channel of an input that is far larger than the others."""

    channel: int
    times: float  # its largest magnitude over the median channel's


@dataclass(frozen=True)
class ObserverFigure:
    """What one observer would have chosen."""

    largest: float  # magnitude that the last level stands for
    error: float  # of the rounded input


@dataclass(frozen=True)
class ModuleFigure:
    """One product, rows [rows, K] times weight [K, N]."""

    graph: str
    module: str
    format: str  # int8, fp8, int4, or `KEPT`
    shape: tuple[int, int, int]  # rows a frame (or a token), K, N
    error: float | None  # of the frame tokens or the logits, when it alone is rounded; None: not measured
    largest: float  # magnitude of its input
    threshold: float | None  # that the last level stands for; None: inputs are not rounded
    outliers: tuple[Outlier, ...]  # of the input as the model has it
    observers: dict[str, ObserverFigure]

    @property
    def multiplications(self) -> int:
        rows, k, n = self.shape
        return rows * k * n


@dataclass(frozen=True)
class GraphFigure:
    """One graph: vision, content, context or llm."""

    graph: str
    format: str
    output: str  # whose error: frame tokens or logits
    modules: int
    kept: int
    share: float  # of its multiplications that are in the format, 0 to 1
    bytes_before: int  # float16
    bytes_after: int
    error: float | None  # of the output, with all that the plan rounds on the way to it
    budget: float | None  # for that


@dataclass(frozen=True)
class SpeedFigure:
    """One product of each distinct shape, on this machine."""

    shape: tuple[int, int, int]
    format: str
    modules: int  # of that shape
    float32_ms: float
    format_ms: float

    @property
    def times_faster(self) -> float:
        return self.float32_ms / self.format_ms


@dataclass(frozen=True, eq=False)
class Distribution:
    """What enters one module: for a picture.

    edges: float [B+1], of magnitudes. counts: [B].
    before, after: largest magnitude of each channel [K], as the model has it and as it is rounded.
    """

    graph: str
    module: str
    edges: npt.NDArray[np.floating]
    counts: npt.NDArray[np.floating]
    before: npt.NDArray[np.floating]
    after: npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Report:
    """All of it.

    made_from: what -> its value, for people.
    observer: whose thresholds were taken.
    unmeasured: why a speed is not there; "" when nothing is missing.
    distributions: of the worst modules; in the pictures alone.
    """

    made_from: dict[str, str]
    observer: str
    graphs: tuple[GraphFigure, ...]
    modules: tuple[ModuleFigure, ...]
    speed: tuple[SpeedFigure, ...]
    unmeasured: str
    distributions: tuple[Distribution, ...]

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "made_from": self.made_from,
            "observer": self.observer,
            "graphs": [dataclasses.asdict(figure) for figure in self.graphs],
            "modules": [dataclasses.asdict(figure) for figure in self.modules],
            "speed": [dataclasses.asdict(figure) for figure in self.speed],
            "unmeasured": self.unmeasured,
        }


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """report.json, report.html and report.png: written beside and renamed.

    Raises:
        UsageError: the folder cannot be written.
    """
    from llamavid.calibration import report_page, report_plots

    shown = {name: _inline(svg) for name, svg in report_plots.pictures(report).items()}
    page = report_page.page(report, shown)
    contents = {
        JSON: (json.dumps(report.document(), indent=1, allow_nan=False) + "\n").encode(),
        PAGE: page.encode(),
        PICTURE: report_plots.whole(report),
    }
    try:
        for name, content in contents.items():
            with replacing(folder / name) as beside:
                beside.write_bytes(content)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror})", next_step="Choose another -o."
        ) from error
    return tuple(folder / name for name in contents)


def table(report: Report) -> str:
    """For people: a line a graph, the worst modules, what is faster."""
    lines = [
        f"{'graph':8} {'format':6} {'rounded':>9} {'products':>9} {'float16':>10} {'now':>10} {'error':>9}"
    ]
    for graph in report.graphs:
        rounded = f"{graph.modules - graph.kept}/{graph.modules}"
        sizes = f"{size(graph.bytes_before):>10} {size(graph.bytes_after):>10}"
        done = f"{rounded:>9} {graph.share:9.1%}"
        lines.append(f"{graph.graph:8} {graph.format:6} {done} {sizes} {number(graph.error):>9}")
    worst = worst_modules(report.modules, _SHOWN)
    if worst:
        lines += ["", f"{'worst alone':52} {'format':6} {'error':>9}"]
        lines += [f"{m.graph + ' ' + m.module:52} {m.format:6} {number(m.error):>9}" for m in worst]
    if report.speed:
        lines += ["", f"{'[rows, K, N] here':24} {'float32':>10} {'format':>6} {'':10} {'':>7}"]
        for one in costliest(report.speed, _SHOWN):
            shape = "[{}, {}, {}]".format(*one.shape)
            lines.append(
                f"{shape:24} {one.float32_ms:7.3f} ms {one.format:>6} {one.format_ms:7.3f} ms "
                f"{one.times_faster:6.2f}x"
            )
    return "\n".join([*lines, *([report.unmeasured] if report.unmeasured else [])])


def worst_modules(modules: tuple[ModuleFigure, ...], count: int) -> list[ModuleFigure]:
    """Those that cost most alone, the worst first."""
    measured = [module for module in modules if module.error is not None]
    return sorted(measured, key=lambda module: -(module.error or 0))[:count]


def costliest(speed: tuple[SpeedFigure, ...], count: int) -> list[SpeedFigure]:
    """Those that the model spends most of its time in, in float32; in their own order."""
    most = sorted(speed, key=lambda one: -one.float32_ms * one.modules)[:count]
    return [one for one in speed if one in most]


def size(count: int) -> str:
    """Bytes for people."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.1f} {unit}"
    return f"{count} B"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _inline(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
