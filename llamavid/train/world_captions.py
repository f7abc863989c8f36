"""A scene in one sentence: who is there at first, then whatever happens, in the order of time.

A red circle and a blue star are there, then the star turns green, then the circle leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from llamavid.train.world_questions import a
from llamavid.train.world_scene import Actor, Scene


def caption(scene: Scene) -> str:
    """Who is there at once is named from left to right."""
    first = sorted(
        (actor for actor in scene.actors if actor.life.enters_seconds == 0), key=lambda actor: actor.start
    )
    named = _joined([a(actor.pairs[0]) for actor in first])
    opening = f"{named} {'are' if len(first) > 1 else 'is'} there" if first else "nothing is there"
    return _sentence([opening, *_moments(scene.actors)])


def caption_of(actor: Actor) -> str:
    """The same about one actor: A red star is there, then the star moves left."""
    opening = [f"{a(actor.pairs[0])} is there"] if actor.life.enters_seconds == 0 else []
    return _sentence([*opening, *_moments([actor])])


def _moments(actors: Iterable[Actor]) -> list[str]:
    """What happens, moment by moment."""
    events = sorted((event for actor in actors for event in _events(actor)), key=itemgetter(0))
    return [_joined([said for _, said in event]) for _, event in groupby(events, key=itemgetter(0))]


def _sentence(moments: Sequence[str]) -> str:
    sentence = ", then ".join(moments)
    return sentence[0].upper() + sentence[1:] + "."


def _events(actor: Actor) -> Iterator[tuple[int, str]]:
    """What it does, each with the second it is done or begins. Who came in before is known by its shape."""
    life, shape = actor.life, actor.shape
    if life.enters_seconds > 0:
        yield life.enters_seconds, f"{a(actor.pairs[0])} appears"
    if life.moves_seconds is not None:
        yield life.moves_seconds[0], f"the {shape} moves {actor.direction}"
    if life.changes_seconds is not None:
        yield life.changes_seconds, f"the {shape} turns {actor.colors[-1]}"
    if life.leaves_seconds is not None:
        yield life.leaves_seconds, f"the {shape} leaves"


def _joined(parts: Sequence[str]) -> str:
    *most, last = parts or ("",)
    return f"{', '.join(most)} and {last}" if most else last
