"""The picture of a run: milliseconds a frame by batch, and what they are made of at the first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = sorted((row["batch"], row["total"]) for row in rows if row["variant"] == variant)
        lines.loglog(*zip(*own, strict=True), marker="o", label=variant)
    lines.set(xlabel="frames a batch", ylabel="ms a frame, total", title=document["machine"]["GPU"])
    lines.legend(fontsize="small")
    batch = rows[0]["batch"]
    shown = [row for row in rows if row["batch"] == batch] or rows
    left = [0.0] * len(shown)
    for module in (*TEXT_FREE, *TEXT_RELATED):
        spent = [row["ms_a_frame"].get(module, {"median": 0.0})["median"] for row in shown]
        if any(spent):
            bars.barh([row["variant"] for row in shown], spent, left=left, label=module)
            left = [a + b for a, b in zip(left, spent, strict=True)]
    bars.set(xlabel=f"ms a frame, batch {batch}")
    bars.invert_yaxis()
    bars.legend(fontsize="small")
    with replacing(file) as beside:
        figure.savefig(beside, format="png", dpi=120)
    plt.close(figure)
