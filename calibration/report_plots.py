"""The report's pictures, by matplotlib: SVG for the page, and all of them in one PNG.

Each draws into axes that it is given, so that a picture alone and the whole look the same. Takes figures;
computes none.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llamavid.calibration.report import KEPT, Distribution, ModuleFigure, Report, costliest

INK, FAINT, GRID = "#22303c", "#8a97a3", "#e6eaee"
COLORS = (
    *("#2f6db3", "#d9692b", "#3c9a5f", "#8a5cb8", "#b8a12c"),
    *("#c2477f", "#4aa3b0", "#7a5a44", "#6d7f8f", "#9bb83b"),
    *("#e39ab8", "#1f3f73"),
)
CHOSEN, CUT = "#c8313a", "#f6d9da"
_RING: dict[str, Any] = {"s": 46, "facecolors": "none", "edgecolors": CHOSEN, "linewidths": 1.2}
OBSERVERS = {
    "absmax": "#8a97a3",
    "percentile": "#3c9a5f",
    "entropy": "#8a5cb8",
    "mse": "#2f6db3",
    "output": "#c2571a",
}
STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "llamavid",  # the same figures, the same file
}
_WIDTH = 9.0  # inches
_SHOWN_BINS = 160
_SHOWN_SPEEDS = 8


def pictures(report: Report) -> dict[str, bytes]:
    """SVG by name: `depth GRAPH`, `inputs`, `channels`, `speed`; what has no figures is left out."""
    drawn: dict[str, bytes] = {}
    for graph in _measured_graphs(report):
        drawn[f"depth {graph}"] = _svg(3.1, partial(_depth, report=report, graphs=[graph]))
    for name, height, draw in _others(report):
        drawn[name] = _svg(height, draw)
    return drawn


def whole(report: Report) -> bytes:
    """All of them as one PNG."""
    parts = [(name, height, draw) for name, height, draw in _others(report)]
    if graphs := _measured_graphs(report):
        rows = -(-len(graphs) // 2)
        parts.insert(0, ("depth", 2.9 * rows, partial(_depth, report=report, graphs=graphs)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, sum(height for _, height, _ in parts) or 1), layout="constrained")
        places = figure.subfigures(
            len(parts) or 1, 1, height_ratios=[height for _, height, _ in parts] or [1]
        )
        for place, (_, _, draw) in zip(np.ravel(np.asarray(places, object)), parts, strict=False):
            draw(place)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _others(report: Report) -> list[tuple[str, float, Callable[[Figure | SubFigure], None]]]:
    """Pictures beside those of the depth, with their heights in inches."""
    found: list[tuple[str, float, Callable[[Figure | SubFigure], None]]] = []
    if report.distributions:
        rows = -(-len(report.distributions) // 3)
        found.append(("inputs", 2.5 * rows, partial(_inputs, report=report)))
        found.append(("channels", 2.3 * rows, partial(_channels, report=report)))
    if report.speed:
        height = 1.0 + 0.36 * min(_SHOWN_SPEEDS, len(report.speed))
        found.append(("speed", height, partial(_speed, report=report)))
    return found


def _svg(height: float, draw: Callable[[Figure | SubFigure], None]) -> bytes:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _heading(figure: Figure | SubFigure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=10.5)


def _log(panel: Axes, side: str) -> None:
    """A logarithmic axis, x or y, with plain numbers, as many as it has room for."""
    axis = panel.xaxis if side == "x" else panel.yaxis
    panel.set(**{f"{side}scale": "log"})
    low, high = axis.get_view_interval()
    within_a_decade_or_two = high < 50 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if within_a_decade_or_two else (1,), numticks=8))
    axis.set_minor_formatter(NullFormatter())
    if low > 1e-4 and high < 1e5:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


# Error along the depth.


def _measured_graphs(report: Report) -> list[str]:
    return list(dict.fromkeys(module.graph for module in report.modules if module.error is not None))


def _depth(figure: Figure | SubFigure, report: Report, graphs: Sequence[str]) -> None:
    """A panel a graph: the error of each module alone, over its block."""
    _heading(figure, "Relative error when one module alone is rounded")
    columns = min(2, len(graphs))
    panels = list(figure.subplots(-(-len(graphs) // columns), columns, squeeze=False).flat)
    for panel, graph in zip(panels, graphs, strict=False):
        _depth_panel(panel, [m for m in report.modules if m.graph == graph and m.error is not None])
        output = next(found.output for found in report.graphs if found.graph == graph)
        panel.set_title(f"{graph}: of the {output}")
    for empty in panels[len(graphs) :]:
        empty.set_visible(False)


def _depth_panel(panel: Axes, modules: Sequence[ModuleFigure]) -> None:
    """Modules of one kind are a line over the blocks; what is in no block stands beside, by its name."""
    by_kind: dict[str, list[tuple[int, ModuleFigure]]] = {}
    for module in modules:
        block, kind = _place(module.module)
        by_kind.setdefault(kind, []).append((block, module))
    lines = {kind: found for kind, found in by_kind.items() if found[0][0] >= 0}
    blocks = 1 + max((block for found in lines.values() for block, _ in found), default=-1)
    for index, (kind, found) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        panel.plot([at for at, _ in found], _errors(found), color=color, linewidth=1, alpha=0.7)
        _points(panel, found, color, kind)
    alone = [(kind, found[0][1]) for kind, found in by_kind.items() if kind not in lines]
    first = blocks + max(1, blocks // 16)  # a little apart
    places = range(first, first + max(1, blocks // 16) * len(alone), max(1, blocks // 16))
    for at, (_, module) in zip(places, alone, strict=True):
        _points(panel, [(at, module)], INK, None)
    if any(module.format == KEPT for module in modules):
        panel.scatter([], [], **_RING, label="kept")
    _log(panel, "y")
    panel.margins(x=0.04, y=0.12)
    ticks = _ticks(blocks)
    panel.set_xticks([*ticks, *places], [*map(str, ticks), *(_short(kind) for kind, _ in alone)])
    for label in panel.get_xticklabels()[len(ticks) :]:
        label.set(rotation=90 if blocks else 0, fontsize=7.5)
    if lines:
        panel.set_xlabel("block", x=0, ha="left", labelpad=0)
        panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), handlelength=1, borderaxespad=0.2)
    else:
        panel.set_xlim(first - 0.7, places[-1] + 0.7)


def _points(panel: Axes, found: Sequence[tuple[int, ModuleFigure]], color: str, label: str | None) -> None:
    panel.scatter([at for at, _ in found], _errors(found), s=13, color=color, label=label, zorder=3)
    kept = [(at, module) for at, module in found if module.format == KEPT]
    panel.scatter([at for at, _ in kept], _errors(kept), **_RING, zorder=4)


def _errors(found: Sequence[tuple[int, ModuleFigure]]) -> list[float]:
    return [module.error for _, module in found if module.error is not None]


def _place(module: str) -> tuple[int, str]:
    """`blocks.3.mlp.fc1` -> 3, `mlp.fc1`; what is in no block keeps its name, at -1."""
    match = re.search(r"(?:blocks|layers)\.(\d+)\.(.+)$", module)
    return (int(match[1]), match[2]) if match else (-1, module)


def _short(module: str) -> str:
    return module.removeprefix("compressor.").removesuffix("_projector")


def _ticks(blocks: int) -> list[int]:
    return list(range(0, blocks, max(1, -(-blocks // 10))))


# What enters the worst modules.


def _grid(figure: Figure | SubFigure, count: int) -> list[Axes]:
    axes = list(figure.subplots(-(-count // 3), min(3, count), squeeze=False).flat)
    for empty in axes[count:]:
        empty.set_visible(False)
    return axes[:count]


def _inputs(figure: Figure | SubFigure, report: Report) -> None:
    rounded = any(one.observers for one in report.modules)
    more = ", and where each observer puts the last level" if rounded else ""
    _heading(figure, f"What enters the worst modules{more}")
    by_name = {(module.graph, module.module): module for module in report.modules}
    handles: dict[str, Artist] = {}
    for panel, found in zip(_grid(figure, len(report.distributions)), report.distributions, strict=True):
        module = by_name[found.graph, found.module]
        _histogram(panel, found, module)
        for name, one in module.observers.items():
            is_chosen = name == report.observer
            handles[name + (" (chosen)" if is_chosen else "")] = panel.axvline(
                one.largest,
                color=CHOSEN if is_chosen else OBSERVERS.get(name, FAINT),
                linewidth=1.6 if is_chosen else 1.1,
                linestyle="-" if is_chosen else (0, (4, 2)),
                zorder=4 if is_chosen else 3,
            )
        panel.set_title(f"{found.graph} {_fitting(found.module)}")
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=len(handles))


def _histogram(panel: Axes, found: Distribution, module: ModuleFigure) -> None:
    """Magnitudes that were seen; behind, what the chosen threshold cuts."""
    edges, counts = _fewer_bins(found)
    panel.stairs(counts, edges, fill=True, color="#b9cbe0", zorder=2)
    panel.stairs(counts, edges, color="#6f8fb5", linewidth=0.8, zorder=2)
    panel.set_yscale("log")
    panel.set_ylim(bottom=0.7)
    end = max(module.largest, *(one.largest for one in module.observers.values()), module.threshold or 0)
    panel.set_xlim(0, end * 1.04)
    if module.threshold is not None and module.threshold < module.largest:
        panel.axvspan(module.threshold, end * 1.04, color=CUT, zorder=1, linewidth=0)
    panel.set_xlabel("magnitude", labelpad=1)


def _fewer_bins(found: Distribution) -> tuple[np.ndarray, np.ndarray]:
    """As many as can be seen, up to the last that holds something."""
    last = int(np.flatnonzero(found.counts).max(initial=0)) + 1
    together = max(1, -(-last // _SHOWN_BINS))
    whole = -(-last // together) * together
    counts = np.zeros(whole)
    counts[: min(whole, len(found.counts))] = found.counts[:whole]
    width = found.edges[1] - found.edges[0]
    edges = found.edges[0] + width * together * np.arange(whole // together + 1)
    return edges, counts.reshape(-1, together).sum(axis=1)


def _channels(figure: Figure | SubFigure, report: Report) -> None:
    _heading(figure, "Their channels' largest magnitudes")
    panels = _grid(figure, len(report.distributions))
    for panel, found in zip(panels, report.distributions, strict=True):
        order = np.argsort(-found.before)
        rank = np.arange(1, len(order) + 1)
        panel.plot(rank, found.before[order], color=FAINT, linewidth=1.4, label="as the model has it")
        if not np.array_equal(found.before, found.after):
            panel.plot(rank, found.after[order], color=COLORS[0], linewidth=0.9, label="as it is rounded")
        _log(panel, "x")
        _log(panel, "y")
        panel.set_title(f"{found.graph} {_fitting(found.module)}")
        panel.set_xlabel("channel, the largest first", labelpad=1)
    shown = [pair for panel in panels for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    labels = {label: handle for handle, label in shown}
    figure.legend(list(labels.values()), list(labels), loc="outside lower left", ncols=2)


def _fitting(module: str, length: int = 34) -> str:
    """A name as a panel's title: the first words go where it is too long."""
    while len(module) > length and "." in module:
        module = "…" + module.lstrip("…").partition(".")[2]
    return module


# Speed.


def _speed(figure: Figure | SubFigure, report: Report) -> None:
    _heading(figure, "One product on this machine, by ONNX Runtime")
    panel = figure.subplots()
    shown = costliest(report.speed, _SHOWN_SPEEDS)
    places = np.arange(len(shown))[::-1]
    panel.barh(places + 0.19, [one.float32_ms for one in shown], 0.36, color="#c9d2da", label="float32")
    for index, format in enumerate(dict.fromkeys(one.format for one in shown)):
        rows = [(at, one.format_ms) for at, one in zip(places, shown, strict=True) if one.format == format]
        panel.barh(
            [at - 0.19 for at, _ in rows], [ms for _, ms in rows], 0.36, color=COLORS[index], label=format
        )
    for at, one in zip(places, shown, strict=True):
        panel.annotate(
            f"{one.times_faster:.1f}x", (max(one.float32_ms, one.format_ms), at), textcoords="offset points",
            xytext=(5, 0), va="center", fontsize=8, color=INK,
        )  # fmt: skip
    panel.set_yticks(places, [_product(one.shape) for one in shown])
    panel.set_xlabel("milliseconds, median")
    panel.margins(x=0.09, y=0.02)
    panel.grid(axis="y", visible=False)
    panel.legend(loc="lower right")


def _product(shape: tuple[int, int, int]) -> str:
    rows, k, n = shape
    return f"{rows:,} × {k:,} × {n:,}"
