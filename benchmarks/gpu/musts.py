"""What must hold on a GPU, read off a run's document. Void figures hold nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BATCH = 32  # frames, of ours
TIMES_PUBLISHED, TEXT_RELATED_MS, ENCODER_SHARE = 4.0, 0.15, 0.5
PUBLISHED = "published, eager"


@dataclass(frozen=True)
class Must:
    """One line that must hold; `found` is None where it was not measured."""

    what: str
    bound: str
    found: float | None
    holds: bool

    @property
    def verdict(self) -> str:
        if self.found is None:
            return ""
        return "holds" if self.holds else "**missed**"


def musts(document: dict[str, Any]) -> tuple[Must, ...]:
    """The three. Ours is the fastest float16 or bfloat16 variant of the rewrites at batch 32."""
    ours, published = best_of_ours(document["rows"]), _row(document["rows"], PUBLISHED, 1)
    times = published["total"] / ours["total"] if ours and published else None
    columns = ours["ms_a_frame"] if ours else {}
    text = sum(columns[name]["median"] for name in ("decoder", "context")) if columns else None
    share = share_of(ours, document["settings"]) if ours else None
    name = f" ({ours['variant']})" if ours else ""
    return (
        Must(
            f"total of a frame at batch {BATCH}{name}, times less than published float16 eager at batch 1",
            f"{TIMES_PUBLISHED:g} or more",
            times,
            times is not None and times >= TIMES_PUBLISHED,
        ),
        Must(
            f"text-related at batch {BATCH}, ms a frame",
            f"{TEXT_RELATED_MS:g} or less",
            text,
            text is not None and text <= TEXT_RELATED_MS,
        ),
        Must(
            f"encoder at batch {BATCH}, of the measured float16 matrix ceiling",
            f"{ENCODER_SHARE:g} or more",
            share,
            share is not None and share >= ENCODER_SHARE,
        ),
    )


def best_of_ours(rows: Iterable[dict[str, Any]], *, batch: int = BATCH) -> dict[str, Any] | None:
    """The fastest valid one that computes the same function, or None."""
    found = [
        row
        for row in rows
        if row["variant"].startswith("ours")
        and row["batch"] == batch
        and row["precision"] in ("float16", "bfloat16")
        and not row["void"]
    ]
    return min(found, key=lambda row: row["total"], default=None)


def share_of(row: dict[str, Any], settings: dict[str, Any]) -> float | None:
    """Operations a second of a row's encoder over those of the measured float16 product."""
    ceiling, operations = settings.get("matrix ceiling"), settings.get("encoder operations")
    if not ceiling or not operations:
        return None
    return operations / (row["ms_a_frame"]["encoder"]["median"] / 1000) / ceiling


def _row(rows: Iterable[dict[str, Any]], variant: str, batch: int) -> dict[str, Any] | None:
    return next(
        (row for row in rows if (row["variant"], row["batch"]) == (variant, batch) and not row["void"]), None
    )
