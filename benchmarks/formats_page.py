"""The page of `benchmarks.formats`: errors by kind of layer, then of every layer, a picture, and the JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.report import RESULTS, machine
from llamavid.calibration.observers import Observer
from llamavid.formats.eight_bits import EightBits
from llamavid.formats.int4 import BLOCK_SIZES

# Kinds of layers, by what their names end in.
KINDS = {
    "encoder qkv": ("vision", (".attn.qkv",)),
    "encoder proj": ("vision", (".attn.proj",)),
    "encoder fc1": ("vision", (".fc1",)),
    "encoder fc2": ("vision", (".fc2",)),
    "content projector": ("content", ("",)),
    "Q-Former cross key, value": ("context", ("cross_attention.key", "cross_attention.value")),
    "Q-Former query, key, value": (
        "context",
        (".attention.query", ".attention.key", ".attention.value", "cross_attention.query"),
    ),
    "Q-Former output": ("context", ("attention.output",)),
    "Q-Former up": ("context", ("feed_forward.up",)),
    "Q-Former down": ("context", ("feed_forward.down",)),
    "context projectors": ("context", ("_projector",)),
    "language q, k, v": ("llm", ("q_proj", "k_proj", "v_proj")),
    "language o": ("llm", ("o_proj",)),
    "language gate, up": ("llm", ("gate_proj", "up_proj")),
    "language down": ("llm", ("down_proj",)),
    "language lm_head": ("llm", ("lm_head",)),
}
TICKS = (0.3, 0.5, 1, 2, 5, 10, 20, 50)  # percent
END = 80
COLORS = ("tab:gray", "tab:orange", "tab:green", "tab:blue", "tab:red")
# Columns of the three tables: a heading and the keys of `Errors`.
EIGHT_BITS = {
    format: {
        f"{observer.value}{how}": f"{format.value} {observer.value}{how}"
        for how in ("", ", migrated")
        for observer in Observer
    }
    for format in EightBits
}
INT4 = {
    f"{block} {way}": f"int4 {block} {way}"
    for way in ("nearest", "clipped", "migrated")
    for block in BLOCK_SIZES
}
TABLES = {"int8": EIGHT_BITS[EightBits.INT8], "fp8": EIGHT_BITS[EightBits.FP8], "int4": INT4}


@dataclass(frozen=True)
class Page:
    """What is told beside the figures."""

    name: str  # of its files
    title: str
    weights: str  # what they are
    command: str


@dataclass(frozen=True)
class Found:
    """Of one layer."""

    graph: str
    module: str
    errors: dict[str, float]


def publish_formats(
    page: Page, found: Sequence[Found], *, frames: int, seconds: float, peak_gib: float
) -> None:
    """Writes `results/NAME.md`, `.json` and `.png`, and prints the tables by kind."""
    kinds = _by_kind(found)
    where = machine()
    by_kind = [line for name, columns in TABLES.items() for line in _table(name, columns, kinds)]
    modules = {one.module: one.errors for one in found}
    text = [
        f"# {page.title}",
        "",
        f"`{page.command}`",
        "",
        f"**{page.weights}**",
        "",
        f"Error of a layer's output in percent: norm of the difference over the norm, {frames} frames of a",
        "clip and two questions, weights and inputs rounded (int4: weights alone). By kind: root of the mean",
        "square over its layers. Bold: the least of a row. Empty: nothing before the layer takes a division.",
        "",
        *by_kind,
        f"![Errors by kind of layer]({page.name}.png)",
        "",
        "## Every layer",
        "",
        *(line for name, columns in TABLES.items() for line in _table(name, columns, modules)),
        f"- {seconds:,.0f} s, {peak_gib:.1f} GiB at most",
        *(f"- {key}: {value}" for key, value in where.items()),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{page.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    document = {
        **dataclasses.asdict(page),
        "machine": where,
        "frames": frames,
        "seconds": seconds,
        "peak_gib": peak_gib,
        "kinds": kinds,
        "modules": [dataclasses.asdict(one) for one in found],
    }
    (RESULTS / f"{page.name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _plot(page, kinds)
    print("\n".join(by_kind))


def kind_of(one: Found) -> str:
    """Its line in the first tables."""
    return next(
        kind for kind, (graph, ends) in KINDS.items() if graph == one.graph and one.module.endswith(ends)
    )


def _by_kind(found: Iterable[Found]) -> dict[str, dict[str, float]]:
    grouped: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for one in found:
        grouped[kind_of(one)].append(one.errors)
    return {
        kind: {what: math.sqrt(sum(e[what] ** 2 for e in errors) / len(errors)) for what in _common(errors)}
        for kind, errors in grouped.items()
        if errors
    }


def _common(errors: Sequence[dict[str, float]]) -> list[str]:
    """What every layer of a kind has."""
    return [what for what in errors[0] if all(what in other for other in errors)]


def _table(name: str, columns: dict[str, str], rows: dict[str, dict[str, float]]) -> list[str]:
    lines = [f"| {name} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for what, errors in rows.items():
        least = min(errors[key] for key in columns.values() if key in errors)
        cells = (_cell(errors.get(key), least) for key in columns.values())
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(error: float | None, least: float) -> str:
    if error is None:
        return ""
    return f"**{100 * error:.3g}**" if error == least else f"{100 * error:.3g}"


def _plot(page: Page, kinds: dict[str, dict[str, float]]) -> None:
    """A panel a format, a line a kind of layer, a mark a way of rounding; errors on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(1, len(TABLES), sharey=True)
    for (name, columns), axes in zip(TABLES.items(), panels, strict=True):
        for heading, key in columns.items():
            places = [place for place, errors in enumerate(kinds.values()) if key in errors]
            values = [100 * errors[key] for errors in kinds.values() if key in errors]
            axes.plot(values, places, label=heading, **_mark(heading))
        axes.set(title=name, xscale="log", xlabel="error of the output, %", xlim=(TICKS[0], END))
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(kinds)), list(kinds))
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8, ncols=2 + (len(columns) % 2), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    panels[0].invert_yaxis()
    figure.suptitle(page.title)
    figure.savefig(RESULTS / f"{page.name}.png", dpi=100)


def _mark(heading: str) -> dict[str, str]:
    """A color for an observer or block; filled where migrated, a cross where int4 rounds to nearest."""
    first = [observer.value for observer in Observer], [str(block) for block in BLOCK_SIZES]
    what, _, how = heading.replace(",", "").partition(" ")
    color = COLORS[next(names.index(what) for names in first if what in names)]
    marker, face = {"": ("o", "none"), "nearest": ("x", color), "clipped": ("o", "none")}.get(
        how, ("o", color)
    )
    return {"color": color, "marker": marker, "markerfacecolor": face, "linestyle": "none"}
