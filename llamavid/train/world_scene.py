"""What exists in the little world, and when: a `Scene` of `Actor`s on a `Background`.

Lengths are in picture sides (the picture is a square of side 1, origin at its upper left corner), times in
seconds. Knows nothing about chance, pixels or words.

Note [Between two frames]
    The model sees the frames at 0, 1, 2, ... seconds. What happens at once (entering, leaving, changing
    color) is dated by the first whole second that shows it done. It begins half a second before and takes
    0.4 s, so no frame that the model sees shows it half done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")

LEAD_SECONDS = 0.5
CHANGING_SECONDS = 0.4


class Pair(NamedTuple):
    """What an actor is called: `str` gives "red circle"."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


# Never seen nor spoken of in the train split: one color of each shape.
UNSEEN_PAIRS = frozenset(
    {
        Pair("green", "circle"),
        Pair("pink", "square"),
        Pair("yellow", "triangle"),
        Pair("blue", "star"),
        Pair("red", "cross"),
    }
)


class Point(NamedTuple):
    """x to the right, y downwards."""

    x: float
    y: float


@dataclass(frozen=True)
class Life:
    """When an actor is there, and what it does then: one thing at most.

    enters_seconds: 0 is from the start; Note [Between two frames].
    leaves_seconds, changes_seconds: None is never.
    moves_seconds: from when to when it moves; None is never.
    """

    enters_seconds: int = 0
    leaves_seconds: int | None = None
    changes_seconds: int | None = None
    moves_seconds: tuple[int, int] | None = None

    def presence(self, seconds: float) -> float:
        """0 is away, 1 is there in full size."""
        return done(self.enters_seconds, seconds) * (1 - done(self.leaves_seconds, seconds))

    def change(self, seconds: float) -> float:
        """0 is the first color, 1 the last."""
        return done(self.changes_seconds, seconds)

    def way(self, seconds: float) -> float:
        """0 is before the move, 1 after it; the speed is constant."""
        if self.moves_seconds is None:
            return 0.0
        begin, end = self.moves_seconds
        return min(max((seconds - begin) / (end - begin), 0.0), 1.0)


@dataclass(frozen=True)
class Actor:
    """One shape.

    colors: its color, and the one that it turns into, if any.
    radius: of the circle that its outline fits in.
    start, end: its center before and after it moves, along x or along y. The same when it does not.
    """

    shape: str
    colors: tuple[str, ...]
    life: Life
    radius: float
    tilt_degrees: float
    start: Point
    end: Point

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """In the order of its colors."""
        return tuple(Pair(color, self.shape) for color in self.colors)

    @property
    def direction(self) -> str:
        """left, right, up or down, of an actor that moves."""
        if self.start.y == self.end.y:
            return "right" if self.start.x < self.end.x else "left"
        return "down" if self.start.y < self.end.y else "up"

    def center(self, seconds: float) -> Point:
        way = self.life.way(seconds)
        return Point(*(start + way * (end - start) for start, end in zip(self.start, self.end, strict=True)))


@dataclass(frozen=True)
class Background:
    """Goes evenly from one tone (rgb, 0 to 255) to another, in the direction of `angle_degrees`."""

    tones: tuple[tuple[int, int, int], tuple[int, int, int]]
    angle_degrees: float


@dataclass(frozen=True)
class Scene:
    """A clip of `seconds`, or a still picture when that is 0.

    No two actors have a shape in common, nor a color: either tells which one is meant. They never overlap.
    """

    name: str
    split: Split
    seconds: int
    background: Background
    actors: tuple[Actor, ...]

    @property
    def is_still(self) -> bool:
        return self.seconds == 0


def done(event_seconds: int | None, seconds: float) -> float:
    """How much of an event is done at a time, 0 to 1; Note [Between two frames]."""
    if event_seconds is None:
        return 0.0
    return min(max((seconds - event_seconds + LEAD_SECONDS) / CHANGING_SECONDS, 0.0), 1.0)
