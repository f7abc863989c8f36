"""The page of a run, made of its JSON document alone: whoever has the JSON can make it again.

python -m benchmarks.gpu.page results/gpu_NAME.json > page.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.errors import BOUNDS, WHOLE
from benchmarks.gpu.musts import musts, share_of
from llamavid.runtime.profile.figures import WIDE

TEXT_FREE, TEXT_RELATED = ("encoder", "content", "kept"), ("decoder", "context")
_UNITS = {
    "matrix ceiling": (1e12, "TFLOP/s"),
    "bandwidth": (1e12, "TB/s"),
    "encoder operations": (1e9, "GFLOP a frame"),
}
_PAPER = ("paper, A100, Q-Former", 1, 4.87, 0.01, 1.08, 0.02)  # Table 9


def page(document: dict[str, Any]) -> str:
    """Markdown."""
    parts = [
        f"# On {document['machine'].get('GPU', 'a machine')}",
        "`make bench-gpu`. Milliseconds a frame are medians; an error is the relative norm of the worst "
        "frame against the plain networks in float32, on the same inputs, in the same run. A figure whose "
        "error is over its bound is void. `in one go` is from pixels to tokens; its tokens may be "
        f"{WHOLE:g} times as far off as a module's result. Ours reads a question once, before the frames; "
        "published reads it with every frame. Every run of a module reads the same inputs: what fits into "
        "the card's cache may come from there, on both sides.",
        _bullets(f"**marked**: {mark}" for mark in document["marks"]),
        _section("What must hold", _musts(document)),
        _section("A frame (Table 9)", _frames(document["rows"], document["settings"])),
        *(_section(group, _values(values)) for group, values in _grouped(document["values"]).items()),
        _section("Not measured", _bullets(f"{each['what']}: {each['why']}" for each in document["skipped"])),
        _section("Machine", _bullets(f"{name}: {text}" for name, text in document["machine"].items())),
        _section("Bounds", _bullets(f"{name}: {bound:g}" for name, bound in BOUNDS.items())),
        _section(
            "Settings",
            _bullets(f"{name}: {_setting(name, value)}" for name, value in document["settings"].items()),
        ),
    ]
    return "\n\n".join(filter(None, parts))


def _musts(document: dict[str, Any]) -> str:
    rows = [
        [must.what, must.bound, "not measured" if must.found is None else must.found, must.verdict]
        for must in musts(document)
    ]
    return _table(["what", "must be", "found", ""], rows)


def _frames(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    head = ["", "batch", "encoder", "content", "decoder", "context", "text-free", "text-related", "total"]
    head += ["in one go", "encoder of ceiling", "worst module's error", "tokens' error"]
    name, batch, encoder, content, decoder, context = _PAPER
    paper = [name, batch, encoder, content, decoder, context, encoder + content, decoder + context, 5.98]
    return _table(head, [[*paper, *[""] * 4], *(_frame(row, settings) for row in rows)])


def _frame(row: dict[str, Any], settings: dict[str, Any]) -> list[Any]:
    if row["void"]:
        return [row["variant"], row["batch"], f"void, {row['void']}", *[""] * 10]
    columns = {name: figure["median"] for name, figure in row["ms_a_frame"].items()}
    text_free, text_related = (
        sum(columns.get(name, 0.0) for name in names) for names in (TEXT_FREE, TEXT_RELATED)
    )
    wide = [name for name, figure in row["ms_a_frame"].items() if _spread(figure) > WIDE]
    name = row["variant"] + (f" (spread of {', '.join(wide)} over {WIDE:.0%})" if wide else "")
    share = share_of(row, settings)
    modules = [columns[each] for each in ("encoder", "content", *TEXT_RELATED)]
    return [
        name,
        row["batch"],
        *modules,
        text_free,
        text_related,
        row["total"],
        columns.get("whole", ""),
        "" if share is None else f"{share:.0%}",
        max(error for module, error in row["errors"].items() if module != "whole"),
        row["errors"].get("whole", ""),
    ]


def _spread(figure: dict[str, float]) -> float:
    return (figure["high"] - figure["low"]) / figure["median"] if figure["median"] else 0.0


def _grouped(values: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By their group, in the order of each group's first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for value in values:
        found.setdefault(value["group"], []).append(value)
    return found


def _values(values: Sequence[dict[str, Any]]) -> str:
    rows = []
    for value in values:
        spread = "" if value["low"] is None else f"{_text(value['low'])} to {_text(value['high'])}"
        error = max(value["errors"].values()) if value["errors"] and not value["void"] else ""
        figure = f"void, {value['void']}" if value["void"] else f"{_text(value['value'])} {value['unit']}"
        rows.append([value["what"], figure, "" if value["void"] else spread, error, value["note"]])
    return _table(["what", "figure", "10th to 90th percentile", "error", ""], rows)


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _setting(name: str, value: Any) -> str:
    size, unit = _UNITS.get(name, (1, ""))
    return f"{_text(value / size)} {unit}" if unit else _text(value)


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
