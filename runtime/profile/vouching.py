"""What vouches for a profile's figures, and what speaks against them, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llamavid.bundle import ParityRow
from llamavid.runtime.profile.document import FrameFigures, LanguageFigures, QuestionFigures
from llamavid.runtime.profile.figures import WIDE, Figure
from llamavid.work import MODULES

_NAMED = 4  # figures of one remark


def parity_words(rows: Sequence[ParityRow]) -> dict[str, str]:
    """Of each graph, the comparison that came nearest to its tolerance."""
    found: dict[str, tuple[float, str]] = {}
    for row in rows:
        near = row.norm_error / row.tolerance if row.tolerance else 0.0
        if near >= found.get(row.graph, (-1.0, ""))[0]:
            bound = f"of {row.tolerance:.0e} allowed" if row.tolerance is not None else "not judged"
            found[row.graph] = near, f"{row.norm_error:.1e} {bound}, against {row.against}"
    return {graph: words for graph, (_, words) in found.items()}


def wide_spreads(
    frames: Sequence[FrameFigures], language: LanguageFigures, questions: QuestionFigures
) -> Iterator[str]:
    """One sentence that names the figures whose rounds lie too far apart. Frames that are decoded may."""
    named: list[tuple[str, Figure]] = [
        (f"{module} at batch {each.batch}", figure)
        for each in frames
        for module, figure in each.modules.items()
        if module in MODULES  # not the sums
    ]
    named += [("prefill", language.prefill), ("a token", language.decode)]
    named += [("first question", questions.first), ("second question", questions.second)]
    wide = sorted((each for each in named if each[1].is_wide), key=lambda each: -each[1].spread)
    if wide:
        worst = ", ".join(f"{what} ({figure.spread:.0%})" for what, figure in wide[:_NAMED])
        more = f" and {len(wide) - _NAMED} more" if len(wide) > _NAMED else ""
        yield f"rounds lie further apart than {WIDE:.0%} of the median: {worst}{more}"
