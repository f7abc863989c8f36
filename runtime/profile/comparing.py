"""Two profiles side by side: what differs in their conditions, and the ratios of their figures. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llamavid.errors import UsageError
from llamavid.runtime.profile.document import Profile
from llamavid.runtime.profile.figures import Figure

_SPREAD_ROUNDS = 3  # one or two have no spread to speak of


@dataclass(frozen=True)
class Ratio:
    """One figure of both."""

    what: str
    first: Figure
    second: Figure

    @property
    def times(self) -> float | None:
        """How many times as fast the second is; None where it took no time."""
        return self.first.median / self.second.median if self.second.median else None

    @property
    def doubt(self) -> str:
        """Why the difference may be the machine's mood; empty where the two spreads leave a gap."""
        if min(self.first.rounds, self.second.rounds) < _SPREAD_ROUNDS:
            return "too few rounds for a spread"
        apart = self.first.high < self.second.low or self.second.high < self.first.low
        return "" if apart else "within the spread"

    @property
    def is_clear(self) -> bool:
        return not self.doubt


@dataclass(frozen=True)
class Comparison:
    """`unlike`: conditions that differ, though they should not; `told`: others that do."""

    ratios: tuple[Ratio, ...]
    unlike: tuple[str, ...]
    told: tuple[str, ...]


def compare(first: Profile, second: Profile, *, unlike: bool = False) -> Comparison:
    """Ratios of what both have.

    Raises:
        UsageError: they were not made alike, and `unlike` does not allow it; names what differs.
    """
    differ = tuple(_differences(first.conditions.alike, second.conditions.alike))
    if differ and not unlike:
        raise UsageError(
            f"the profiles were not made alike: {'; '.join(differ)}",
            expected="one machine, precision, batch and bundle",
            next_step="Pass --unlike to see the ratios all the same.",
        )
    told = tuple(_differences(first.conditions.told, second.conditions.told))
    ratios = tuple(Ratio(what, one, dict(_figures(second))[what]) for what, one in _common(first, second))
    return Comparison(ratios, differ, told)


def _differences(first: dict[str, str], second: dict[str, str]) -> Iterator[str]:
    for name in sorted({*first, *second}):
        one, other = first.get(name, "not told"), second.get(name, "not told")
        if one != other:
            yield f"{name} {one} and {other}"


def _common(first: Profile, second: Profile) -> Iterator[tuple[str, Figure]]:
    others = {what for what, _ in _figures(second)}
    return ((what, each) for what, each in _figures(first) if what in others)


def _figures(profile: Profile) -> Iterator[tuple[str, Figure]]:
    yield "decode, a frame", profile.video.decode
    yield "pixels, a frame", profile.video.pixels
    for each in profile.frames:
        for module, figure in each.modules.items():
            yield f"{module}, batch {each.batch}", figure
    language, questions = profile.language, profile.questions
    yield f"prefill, {language.prompt_tokens} tokens", language.prefill
    yield "a token", language.decode
    yield "watching", questions.watch
    yield "first question", questions.first
    yield "second question", questions.second
    yield "first token", questions.first_token
