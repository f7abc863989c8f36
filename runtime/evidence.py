"""Evidence: which frames a question found something in, and where it looked. Attention, not proof.

    collector = EvidenceCollector(bundle)          # refuses a bundle whose context graph does not tell
    for outputs in runs_of_the_context_graph:      # in the order of the frames
        collector.add(outputs)
    print(collector.evidence(frames).table())

Takes what the context graph gives beside its tokens; Note [Relevance] in `llamavid.model.compressor` says
what the number is. An hour of one frame a second is 3.7 MB at 256 patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.bundle import Bundle
from llamavid.contract import ATTENTION, RELEVANCE
from llamavid.errors import BundleError
from llamavid.runtime.video.frames import FrameTime

Floats = npt.NDArray[np.float32]

NOT_PROOF = "Attention, not proof: where the question looked, which need not be why the answer is what it is."

_BAR = 20  # characters, of the most relevant frame


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of one question about T frames, in their order.

    relevance: float32 [T], 0 or more. Higher: the question found more in that frame than in the others. Its
        size means nothing across models.
    attention: float32 [T, N], the share of each patch, row after row; every frame's sum is 1, whether or not
        it shows what was asked about.
    """

    frames: tuple[FrameTime, ...]
    relevance: Floats
    attention: Floats

    def top(self, count: int) -> list[int]:
        """Places in `frames` of the most relevant ones, the most relevant first; of equals, the earlier."""
        return np.argsort(-self.relevance, kind="stable")[:count].tolist()

    @property
    def shares(self) -> Floats:
        """[T], each frame's part of the relevance of all; they sum to 1."""
        total = self.relevance.sum(dtype=np.float64)
        even = np.full(len(self.relevance), 1 / max(1, len(self.relevance)), np.float32)
        return (self.relevance / total).astype(np.float32) if total > 0 else even

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """[T], 1 is the most relevant frame."""
        ranks = np.empty(len(self.relevance), np.int64)
        ranks[self.top(len(ranks))] = np.arange(1, len(ranks) + 1)
        return ranks

    def document(self) -> dict[str, Any]:
        """For JSON: every frame in time order, and what the numbers are."""
        rows = zip(self.frames, self.relevance, self.shares, self.ranks, strict=True)
        return {
            "note": NOT_PROOF,
            "frames": [
                {
                    "index": frame.index,
                    "pts_seconds": frame.pts_seconds,
                    "relevance": round(float(relevance), 4),
                    "share": round(float(share), 6),
                    "rank": int(rank),
                }
                for frame, relevance, share, rank in rows
            ],
        }

    def table(self, count: int = 5) -> str:
        """For people: the most relevant frames, with a bar each."""
        highest = max(float(self.relevance.max(initial=0.0)), 1e-9)
        lines = [f"{'time':>10}{'relevance':>11}"]
        for at in self.top(count):
            bar = "#" * round(_BAR * float(self.relevance[at]) / highest)
            lines.append(
                f"{clock(self.frames[at].pts_seconds):>10}{self.relevance[at]:11.1f}  {bar}".rstrip()
            )
        return "\n".join([*lines, NOT_PROOF])


class EvidenceCollector:
    """Gathers evidence batch by batch, as the context graph runs."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises `BundleError` when the bundle's context graph does not tell what it looked at."""
        require_evidence(bundle)
        self._relevance: list[Floats] = []
        self._attention: list[Floats] = []

    def add(self, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """What one run of the context graph gave: `attention` [n, N] and `relevance` [n], and maybe more."""
        self._attention.append(outputs[ATTENTION])
        self._relevance.append(outputs[RELEVANCE])

    def evidence(self, frames: tuple[FrameTime, ...]) -> Evidence:
        """Of all that was added; `frames` are the same ones in the same order.

        Raises:
            BundleError: a frame's relevance is not a number.
        """
        relevance, attention = np.concatenate(self._relevance), np.concatenate(self._attention)
        assert len(relevance) == len(frames), f"{len(relevance)} frames were added, {len(frames)} are named"
        odd = np.flatnonzero(~np.isfinite(relevance) | ~np.isfinite(attention).all(axis=1))
        if odd.size:
            frame = frames[odd[0]]
            raise BundleError(
                f"the context graph gives frame {frame.index} at {clock(frame.pts_seconds)} no number",
                expected="relevance and attention that are finite",
                next_step="Export with --precision fp32.",
            )
        return Evidence(frames, relevance, attention)


def require_evidence(bundle: Bundle) -> None:
    """Raises `BundleError` when a bundle was made before context graphs told what they look at."""
    outputs = {spec.name for spec in bundle.manifest.graphs["context"].contract.outputs}
    if not {ATTENTION, RELEVANCE} <= outputs:
        raise BundleError(
            f"{bundle.folder} answers, but gives no evidence: it was made by an earlier llamavid",
            expected=f"a context graph with {ATTENTION} and {RELEVANCE}",
            next_step="Export it again with `llamavid export`.",
        )


def clock(seconds: float) -> str:
    """01:03.5 and, from an hour on, 1:02:03.5; what is before the beginning is 00:00.0."""
    tenths = max(0, round(seconds * 10))
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{tenths / 10:04.1f}" if hours else f"{minutes:02}:{tenths / 10:04.1f}"
