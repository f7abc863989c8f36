"""Scenes by chance: the same split, seed and number give the same scene.

A clip is a row of acts of one length: one act, or three or six, so that they add up to thirds of the clip.
Actors enter, leave and change color between acts only: every state lasts for an act, which is 3 s or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from random import Random
from typing import Literal, NamedTuple

from llamavid.train.world_scene import (
    COLORS,
    SHAPES,
    SPLITS,
    UNSEEN_PAIRS,
    Actor,
    Background,
    Life,
    Pair,
    Point,
    Scene,
    Split,
)

MOST_ACTORS = 4
RADII = (0.16, 0.2)
MARGIN = 0.02  # around every actor
TILT_DEGREES = 12.0
SHORTEST_WAY = 0.45
MOVE_SECONDS = (4, 10)
PATHS_TRIED = 20
# Against 1 for rest. Moving, by how many others are there meanwhile: three leave no room.
MOVE_WEIGHTS, CHANGE_WEIGHT = (8, 6, 2, 0), 4
TONES = (20, 100)  # of 255: darker than any actor
TINT, SLOPE = 12, 30


@dataclass(frozen=True)
class Acts:
    """`count` acts of `seconds` each."""

    count: int
    seconds: int


class Stay(NamedTuple):
    """The first act that an actor is there, and the one after its last."""

    first: int
    end: int


STILL = (Acts(1, 0),)
# One clip in ten is 18 to 60 s long, the others 4 to 15 s. More of them are short.
ONE_ACT = tuple(Acts(1, seconds) for seconds in (4, 5, 6, 7, 8))
THREE_ACTS = tuple(Acts(3, seconds) for seconds in (3, 3, 4, 4, 4, 5))
SIX_ACTS = tuple(Acts(6, seconds) for seconds in (3, 3, 4, 4, 5, 6, 8, 10))
LONG_ACTS = tuple(Acts(6, seconds) for seconds in (20, 25, 30, 35, 40))

Form = Literal["clip", "still", "long"]
LENGTHS: dict[Form, tuple[tuple[tuple[Acts, ...], ...], tuple[int, ...]]] = {
    "clip": ((ONE_ACT, THREE_ACTS, SIX_ACTS), (2, 7, 1)),
    "still": ((STILL,), (1,)),
    "long": ((LONG_ACTS,), (1,)),
}


def scenes(
    split: Split, seed: int, count: int, *, form: Form = "clip", drawable: bool = True
) -> Iterator[Scene]:
    """The first `count` scenes of a seed: clips of up to a minute, long ones of 2 to 4, or still pictures.

    Splits cannot share a scene: the split's name goes into the chance that each is drawn by. Not `drawable`,
    actors may overlap: for who only wants to tell of them, and fifty times as fast.
    """
    for index in range(count):
        yield _scene(f"{split}-{seed}-{form}-{index}", split, form, drawable=drawable)


def allowed_pairs(split: Split) -> frozenset[Pair]:
    """What may be shown and spoken of in a split."""
    pairs = frozenset(Pair(color, shape) for shape in SHAPES for color in COLORS)
    return pairs - UNSEEN_PAIRS if split == "train" else pairs


_ALLOWED = {split: allowed_pairs(split) for split in SPLITS}


def _scene(name: str, split: Split, form: Form, *, drawable: bool) -> Scene:
    chance = Random(name)
    lengths, weights = LENGTHS[form]
    acts = chance.choice(chance.choices(lengths, weights)[0])
    # How many, and when: kept until they fit the picture, or what fits with ease would be asked about most.
    stays = [_stay(acts.count, chance) for _ in range(chance.randint(1, MOST_ACTORS))]
    actors = None
    while actors is None:
        lives = [_life(stay, acts, chance, company=_company(stay, stays)) for stay in stays]
        actors = _placed(lives, _pairs(lives, _ALLOWED[split], chance), chance, apart=drawable)
    return Scene(name, split, acts.count * acts.seconds, _background(chance), actors)


def _stay(acts: int, chance: Random) -> Stay:
    if acts == 1:
        return Stay(0, 1)
    third = acts // 3
    begin = chance.randrange(3) * third
    stays = (
        Stay(0, acts),
        Stay(begin, begin + third),  # the only one within a third: each third is as likely
        Stay(chance.randint(1, 2 * third - 1), acts),
        Stay(0, chance.randint(third + 1, acts - 1)),
    )
    return chance.choices(stays, (3, 4, 3, 1))[0]


def _company(stay: Stay, stays: Sequence[Stay]) -> int:
    """How many others are there at some time of its stay."""
    return sum(stay.first < other.end and other.first < stay.end for other in stays) - 1


def _life(stay: Stay, acts: Acts, chance: Random, *, company: int) -> Life:
    enters, seconds = stay.first * acts.seconds, (stay.end - stay.first) * acts.seconds
    life = Life(enters, leaves_seconds=stay.end * acts.seconds if stay.end < acts.count else None)
    move = MOVE_WEIGHTS[company] if seconds >= MOVE_SECONDS[0] else 0
    change = CHANGE_WEIGHT if stay.end - stay.first > 1 else 0
    deed = chance.choices(("rest", "move", "change"), (1, move, change))[0]
    if deed == "move":
        lasting = chance.randint(MOVE_SECONDS[0], min(seconds, MOVE_SECONDS[1]))
        begin = enters + chance.randint(0, seconds - lasting)
        return replace(life, moves_seconds=(begin, begin + lasting))
    if deed == "change":
        return replace(life, changes_seconds=chance.randint(stay.first + 1, stay.end - 1) * acts.seconds)
    return life


def _pairs(lives: Sequence[Life], allowed: frozenset[Pair], chance: Random) -> list[list[Pair]]:
    """What each is called, before and after its color changes; no shape and no color twice."""
    while True:
        shapes, colors = chance.sample(SHAPES, len(lives)), iter(chance.sample(COLORS, len(COLORS)))
        pairs = [
            [Pair(color, shape) for color in islice(colors, 1 if life.changes_seconds is None else 2)]
            for life, shape in zip(lives, shapes, strict=True)
        ]
        if allowed.issuperset(chain(*pairs)):
            return pairs


def _placed(
    lives: Sequence[Life], pairs: list[list[Pair]], chance: Random, *, apart: bool
) -> tuple[Actor, ...] | None:
    """On paths that keep clear of each other if they must; None when there is no room."""
    placed: list[Actor] = []
    for life, called in zip(lives, pairs, strict=True):
        radius, tilt = chance.uniform(*RADII), chance.uniform(-TILT_DEGREES, TILT_DEGREES)
        colors = tuple(pair.color for pair in called)
        for _ in range(PATHS_TRIED):
            start, end = _path(radius, chance, moving=life.moves_seconds is not None)
            actor = Actor(called[0].shape, colors, life, radius, tilt, start, end)
            if not apart or all(_apart(actor, other) for other in placed):
                placed.append(actor)
                break
        else:
            return None
    return tuple(placed)


def _path(radius: float, chance: Random, *, moving: bool) -> tuple[Point, Point]:
    """Where it starts and ends, all of it inside the picture."""
    low, high = radius + MARGIN, 1 - radius - MARGIN
    start = Point(chance.uniform(low, high), chance.uniform(low, high))
    if not moving:
        return start, start
    near = chance.uniform(low, high - SHORTEST_WAY)
    there, back = chance.sample((near, chance.uniform(near + SHORTEST_WAY, high)), 2)
    if chance.random() < 0.5:
        return start._replace(x=there), start._replace(x=back)
    return start._replace(y=there), start._replace(y=back)


def _apart(one: Actor, other: Actor) -> bool:
    """Never there together, or on paths that do not touch."""
    for before, after in ((one.life, other.life), (other.life, one.life)):
        if before.leaves_seconds is not None and before.leaves_seconds < after.enters_seconds:
            return True
    gap = one.radius + other.radius + MARGIN
    ways = zip(zip(one.start, one.end, strict=True), zip(other.start, other.end, strict=True), strict=True)
    return any(min(a) - max(b) >= gap or min(b) - max(a) >= gap for a, b in ways)  # along x, along y


def _background(chance: Random) -> Background:
    tone, slope = chance.randint(*TONES), chance.randint(-SLOPE, SLOPE)
    red, green, blue = (tone + chance.randint(-TINT, TINT) for _ in range(3))
    last = (max(0, red + slope), max(0, green + slope), max(0, blue + slope))
    return Background(((red, green, blue), last), chance.uniform(0, 360))
