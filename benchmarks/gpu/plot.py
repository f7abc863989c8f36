"""The picture of a run: milliseconds a frame by batch, and what they are made of at the first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.musts import PUBLISHED
from benchmarks.gpu.page import TEXT_FREE, TEXT_RELATED
from llamavid.replacing import replacing


def draw(document: dict[str, Any], file: Path) -> None:
    """Writes a PNG. Needs matplotlib; void rows are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in document["rows"] if not row["void"]]
    if not rows:
        return
    figure, (lines, bars) = plt.subplots(1, 2, figsize=(14, 5), layout="constrained")
    _draw_lines(lines, rows, document["machine"]["GPU"])
    batch = rows[0]["batch"]
    _draw_bars(bars, [row for row in rows if row["batch"] == batch or _is_compared_with(row)])
    with replacing(file) as beside:
        figure.savefig(beside, format="png", dpi=120)
    plt.close(figure)


def _is_compared_with(row: dict[str, Any]) -> bool:
    return (row["variant"], row["batch"]) == (PUBLISHED, 1)


def _draw_lines(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    """Total by batch."""
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = sorted((row["batch"], row["total"]) for row in rows if row["variant"] == variant)
        axes.plot(*zip(*own, strict=True), marker="o", label=variant)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    batches = sorted({row["batch"] for row in rows})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(xlabel="frames a batch", ylabel="ms a frame, total", title=title)
    axes.legend(fontsize="small")


def _draw_bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Modules, one after the other."""
    names, left = [f"{row['variant']}, batch {row['batch']}" for row in rows], [0.0] * len(rows)
    for module in (*TEXT_FREE, *TEXT_RELATED):
        spent = [row["ms_a_frame"].get(module, {"median": 0.0})["median"] for row in rows]
        if any(spent):
            axes.barh(names, spent, left=left, label=module)
            left = [a + b for a, b in zip(left, spent, strict=True)]
    axes.set(xlabel="ms a frame")
    axes.invert_yaxis()
    axes.legend(fontsize="small")
