"""Pictures of recorded results: each side's time in bars, and two questions stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.patches import Patch

from benchmarks.recorded import Result
from benchmarks.report import Line
from llamavid.replacing import replacing
from llamavid.runtime.profile.document import STAGE_WORDS

Groups = Mapping[str, Mapping[str, Line]]

_OURS, _THEIRS, _INK, _PALE = "#D55E00", "#9DB4C0", "#333333", "#BBBBBB"
_NOT_OURS = ("published", "PyTorch", "torch.compile", "OpenVINO", "llama.cpp", "ONNX Runtime")
_COLUMNS = 2
_LABEL_WIDTH = 36  # letters a line
# One color a stage, told apart by people who do not see red and green alike (Okabe and Ito).
_STAGES = {
    "decode_video": "#999999",
    "pixels": "#666666",
    "vision": "#0072B2",
    "content": "#56B4E9",
    "context": "#D55E00",
    "sequence": "#F0E442",
    "prefill": "#009E73",
    "decode": "#CC79A7",
}


def draw_sides(results: Mapping[str, Groups], file: Path) -> None:
    """A panel for each thing that was measured, a bar a side; ours in color. Writes a PNG."""
    panels = [
        (f"{name}: {what}", sides) for name, groups in results.items() for what, sides in groups.items()
    ]
    if not panels:
        return
    rows = -(-len(panels) // _COLUMNS)
    bars = [
        max(len(sides) for _, sides in panels[at : at + _COLUMNS]) for at in range(0, len(panels), _COLUMNS)
    ]
    with _figure(12, 0.6 + 0.32 * sum(bars) + 0.6 * rows) as figure:
        axes = figure.subplots(rows, _COLUMNS, squeeze=False, height_ratios=bars).flatten()
        for axis, (what, sides) in zip(axes, panels, strict=False):
            _draw_panel(axis, what, sides)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        _save(figure, file)


def _draw_panel(axis: Any, what: str, sides: Mapping[str, Line]) -> None:
    names = list(reversed(sides))
    values = [sides[name].value or 0.0 for name in names]
    colors = [_THEIRS if name.startswith(_NOT_OURS) else _OURS for name in names]
    axis.barh(range(len(names)), values, 0.7, color=colors)
    for at, value in enumerate(values):
        axis.annotate(f" {_short(value)}", (value, at), va="center", color=_INK)
    axis.set_yticks(range(len(names)), [fill(name, _LABEL_WIDTH) for name in names])
    axis.tick_params(axis="y", length=0)
    axis.set_title(f"{what}, {next(iter(sides.values())).unit}", loc="left", fontsize=9)
    axis.margins(x=0.14)


def draw_second_question(result: Result, file: Path) -> None:
    """For each model two bars: asking anew, and the second question. Writes a PNG."""
    models = result.stages()
    if not models:
        return
    with _figure(12, 0.9 + 1.3 * len(models)) as figure:
        axes = figure.subplots(len(models), 1, squeeze=False)[:, 0]
        for axis, (model, questions) in zip(axes, models.items(), strict=True):
            _draw_stages(axis, model, [questions.get(each, {}) for each in ("second", "anew")])
        handles = [Patch(color=color, label=STAGE_WORDS[stage]) for stage, color in _STAGES.items()]
        figure.legend(handles=handles, ncols=len(handles), frameon=False, loc="outside lower center")
        _save(figure, file)


def _draw_stages(axis: Any, model: str, bars: Sequence[Mapping[str, Line]]) -> None:
    for at, stages in enumerate(bars):
        begin = 0.0
        for stage, line in stages.items():
            axis.barh(at, line.value, 0.6, left=begin, color=_STAGES.get(stage, _PALE))
            begin += line.value or 0.0
        axis.annotate(f" {_short(begin)} s", (begin, at), va="center", color=_INK)
    axis.set_yticks(range(len(bars)), ["second question", "asking anew"])
    axis.tick_params(axis="y", length=0)
    axis.set_title(model, loc="left", fontsize=9)
    axis.margins(x=0.1)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """Inches; in our style, and closed at the end."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK}
    with pyplot.rc_context({**style, "axes.edgecolor": _PALE}):
        figure = pyplot.figure(figsize=(width, height), layout="constrained")
        try:
            yield figure
        finally:
            pyplot.close(figure)


def _save(figure: Any, file: Path) -> None:
    with replacing(file) as beside:
        figure.savefig(beside, dpi=120, format="png", metadata={"Software": None})


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
