"""A profile as a picture: each module's time with its floor, two questions, and the roofline."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib

from llamavid.replacing import replacing
from llamavid.runtime.profile.document import STAGE_WORDS

if TYPE_CHECKING:
    from llamavid.runtime.profile.document import Profile, QuestionFigures, Reached

# One color a module, told apart by people who do not see red and green alike (Okabe and Ito).
_COLORS = {
    "encoder": "#0072B2",
    "content": "#56B4E9",
    "decoder": "#D55E00",
    "context": "#E69F00",
    "prefill": "#009E73",
    "decode": "#CC79A7",
}
_BARS = ("encoder", "content", "decoder", "context")
_INK, _PALE = "#333333", "#BBBBBB"
_LINE = 150  # letters of a title
_STAGE_COLORS = {
    "decode_video": "#999999",
    "pixels": "#666666",
    "vision": _COLORS["encoder"],
    "content": _COLORS["content"],
    "context": _COLORS["decoder"],
    "sequence": "#F0E442",
    "prefill": _COLORS["prefill"],
    "decode": _COLORS["decode"],
}


def draw(profile: Profile, file: Path) -> None:
    """Writes a PNG. Raises `OSError` where the file cannot be written."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK}
    with pyplot.rc_context({**style, "axes.edgecolor": _PALE, "axes.labelcolor": _INK}):
        figure = pyplot.figure(figsize=(12, 8.2), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15), hspace=0.04)
        top, bottom = halves
        left, right = bottom.subfigures(1, 2, width_ratios=(1, 1.25), wspace=0.03)
        _draw_modules(top, profile)
        _draw_questions(left.subplots(), profile.questions)
        _draw_roofline(right.subplots(), profile)
        figure.suptitle(_title(profile), fontsize=11, x=0.01, ha="left", color=_INK)
        with replacing(file) as beside:
            figure.savefig(beside, dpi=150, format="png")
        pyplot.close(figure)


def _title(profile: Profile) -> str:
    alike = profile.conditions.alike
    marked = "".join("\n" + fill(f"marked: {mark}", _LINE) for mark in profile.conditions.marks)
    where = alike.get("GPU") or f"{alike.get('processor', '')}, {alike.get('cores', '?')} cores"
    return f"llamavid profile on {alike.get('on', '')}: {where}\n{alike.get('precision', '')}{marked}"


def _draw_modules(area: Any, profile: Profile) -> None:
    """For each batch a panel: bars with the 10th to 90th percentile, and the floor as a line."""
    panels = area.subplots(1, len(profile.frames), squeeze=False, sharey=True)[0]
    floors = {(each.module, each.batch): each for each in profile.roofline.reached}
    highest = max(each.modules[module].high for each in profile.frames for module in _BARS)
    lowest = min(each.floor or each.measured for each in floors.values() if each.module in _BARS)
    for panel, each in zip(panels, profile.frames, strict=True):
        for at, module in enumerate(_BARS):
            figure = each.modules[module]
            spread = [[figure.median - figure.low], [figure.high - figure.median]]
            panel.bar(at, figure.median, 0.62, color=_COLORS[module], alpha=0.85)
            panel.errorbar(at, figure.median, spread, color=_INK, capsize=3, linewidth=1)
            reached = floors[module, each.batch]
            label = f"{figure.median:.3g}"
            if reached.floor is not None and reached.share is not None:
                panel.hlines(reached.floor, at - 0.42, at + 0.42, color=_INK, linewidth=1.6)
                label += f"\n{reached.share:.0%}"
            panel.annotate(
                label, (at, figure.high), (0, 3), textcoords="offset points", ha="center", va="bottom"
            )
        panel.set_yscale("log")
        panel.set_ylim(lowest / 2, highest * 4)
        panel.set_xticks(range(len(_BARS)), _BARS)
        panel.tick_params(length=0)
        panel.set_title(f"batch {each.batch}", loc="left", fontsize=9, color=_INK)
        panel.grid(axis="y", color=_PALE, alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("ms a frame")
    area.suptitle(
        "Modules: median, 10th to 90th percentile; the line is the floor, the percentage its part",
        fontsize=10,
    )


def _draw_questions(panel: Any, questions: QuestionFigures) -> None:
    """First and second question, stage by stage."""
    shown = set[str]()
    for at, name in ((1, "first"), (0, "second")):
        begin = 0.0
        for stage, spent in questions.stages[name].items():
            color = _STAGE_COLORS.get(stage, _PALE)
            label = None if stage in shown else STAGE_WORDS.get(stage, stage)
            panel.barh(at, spent, 0.5, left=begin, color=color, label=label)
            shown.add(stage)
            begin += spent
        whole = getattr(questions, name).median
        panel.annotate(f" {whole:,.4g} ms", (begin, at), va="center")
    panel.set_yticks((0, 1), ("second\nquestion", "first, with\nwatching"))
    panel.tick_params(axis="y", length=0)
    panel.margins(x=0.22)
    panel.set_ylim(-0.6, 1.6)
    panel.set_xlabel("ms")
    panel.set_title(f"Two questions about {questions.frames} frames", fontsize=10)
    handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    panel.legend(
        handles.values(), handles, ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16)
    )


def _draw_roofline(panel: Any, profile: Profile) -> None:
    """Operations a byte against operations a second: points under the machine's ceilings."""
    roof = profile.roofline
    largest = max(each.batch for each in profile.frames)
    points = [
        each
        for each in roof.reached
        if each.measured and each.bytes and (each.batch == largest or each.module not in _BARS)
    ]
    intensities = [each.operations / each.bytes for each in points]
    edge = max(roof.products.values()) / roof.bandwidth
    low, high = min([*intensities, edge]) / 4, max([*intensities, edge]) * 6
    _draw_ceilings(panel, roof.products, roof.bandwidth, low, high)
    for each, intensity in zip(points, intensities, strict=True):
        rate = 1000 * each.operations / each.measured
        look: Any = {"color": _COLORS[each.module], "markersize": 8, "markeredgecolor": "white"}
        panel.plot(intensity, rate, "o", label=_point_name(each), **look)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(low, high)
    panel.set_xlabel("operations a byte")
    panel.set_ylabel("operations a second")
    panel.grid(color=_PALE, alpha=0.3)
    panel.set_title(f"Roofline, ceilings {roof.origin}", fontsize=10)
    panel.legend(ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _draw_ceilings(panel: Any, products: dict[str, float], bandwidth: float, low: float, high: float) -> None:
    for rate, name in _merged(products).items():
        ridge = min(max(rate / bandwidth, low), high)
        panel.plot([ridge, high], [rate, rate], color=_INK, linewidth=1.2)
        panel.annotate(
            name, (high, rate), (-3, 3), textcoords="offset points", ha="right", va="bottom", color=_INK
        )
    top = max(products.values(), default=bandwidth * high)
    ridge = min(top / bandwidth, high)
    panel.plot([low, ridge], [low * bandwidth, ridge * bandwidth], color=_INK, linewidth=1.2)
    middle = (low * ridge) ** 0.5
    panel.annotate("memory", (middle, middle * bandwidth), (-6, 4), textcoords="offset points", ha="right")


def _merged(products: dict[str, float]) -> dict[float, str]:
    """Ceilings that would lie upon each other as one, the higher: `fp16, fp32`."""
    merged: dict[float, str] = {}
    for name, rate in sorted(products.items(), key=lambda item: -item[1]):
        near = next((each for each in merged if each < 1.35 * rate), rate)
        merged[near] = f"{merged[near]}, {name}" if near in merged else name
    return merged


def _point_name(reached: Reached) -> str:
    if reached.module == "decode":
        return "a token"
    return reached.module if reached.module not in _BARS else f"{reached.module}, batch {reached.batch}"
