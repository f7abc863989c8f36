"""Questions about a scene: at most one of each kind, when the scene has an answer to it.

Answers follow from the frames at 0, 1, 2, ... seconds. An actor is spoken of by what tells it from the others
all the time: its shape, or its color and shape when the color stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import groupby, pairwise
from random import Random

from llamavid.train.world_casting import allowed_pairs
from llamavid.train.world_scene import UNSEEN_PAIRS, Actor, Pair, Scene

Texts = tuple[str, ...]

COLOR: Texts = "What color is the {}?", "Which color does the {} have?", "Name the color of the {}."
SHAPE: Texts = "What shape is {}?", "Which shape is {}?", "Name the shape that is {}."
COUNT: Texts = (
    "How many different shapes appear in the {place}?",
    "How many shapes are there in the whole {place}?",
    "Count the different shapes in the {place}.",
)
DIRECTION: Texts = (
    "Which way does the {} move?",
    "In which direction does the {} move?",
    "Does the {} move left, right, up or down?",
)
FIRST: Texts = "Which shape appears first?", "What is the first shape to appear?"
LAST: Texts = "Which shape appears last?", "What is the last shape to appear?"
NEXT: Texts = "Which shape appears next after the {}?", "What is the next shape after the {}?"
WHEN: Texts = "When is the {} there?", "When can the {} be seen?", "In which part of the video is the {}?"
YES_NO: Texts = (
    "Is there {} in the {place}?",
    "Does {} appear in the {place}?",
    "Can you see {} in the {place}?",
)
CHANGE: Texts = (
    "What color does the {} turn into?",
    "Which color does the {} become?",
    "What is the new color of the {}?",
)
DESCRIBE_ALL: Texts = ("Describe the {place} in one sentence.",)
DESCRIBE_ONE: Texts = "Describe the {}.", "What does the {} do?", "Tell me about the {}."
NUMBERS = ("zero", "one", "two", "three", "four")
THIRDS = ("at the beginning", "in the middle", "at the end")


class Kind(str, Enum):
    COLOR = "color"
    SHAPE = "shape"
    COUNT = "count"
    DIRECTION = "direction"
    ORDER = "order"
    WHEN = "when"
    YES_NO = "yes_no"
    CHANGE = "change"


@dataclass(frozen=True)
class Question:
    """answer: a word or a few, without a period. unseen_pair: it is about one of UNSEEN_PAIRS."""

    kind: Kind
    text: str
    answer: str
    unseen_pair: bool


@dataclass(frozen=True)
class Fact:
    """What can be asked. texts: ways to ask it, with a gap for `named`. pairs: all that it is about."""

    texts: Texts
    named: str
    answer: str
    pairs: tuple[Pair, ...]


def questions(scene: Scene) -> list[Question]:
    """In the order of `Kind`; the same ones for the same scene."""
    chance = Random(f"{scene.name} questions")
    asked = []
    for kind in Kind:
        if facts := FACTS[kind](scene):
            fact = chance.choice(facts)
            text = chance.choice(fact.texts).format(fact.named, place=place(scene))
            asked.append(Question(kind, text, fact.answer, not UNSEEN_PAIRS.isdisjoint(fact.pairs)))
    return asked


def any_question(scene: Scene, chance: Random, pairs: Sequence[Pair]) -> str:
    """A text about one of `pairs`, shown or not, by its shape, its color or both; or about nobody."""
    shown = [pair for pair in _pairs(scene.actors) if pair in pairs]
    pair = chance.choice(shown if shown and chance.random() < 0.7 else pairs)
    about_one = chance.choice((COLOR, DIRECTION, NEXT, WHEN, CHANGE, DESCRIBE_ONE))
    about_nobody = chance.choice((COUNT, FIRST, LAST, DESCRIBE_ALL))
    ways = (
        (about_one, pair.shape),
        (about_one, str(pair)),
        (SHAPE, pair.color),
        (YES_NO, a(pair)),
        (about_nobody, ""),
    )
    texts, named = chance.choice(ways)
    return chance.choice(texts).format(named, place=place(scene))


def place(scene: Scene) -> str:
    return "picture" if scene.is_still else "video"


def a(pair: Pair) -> str:
    """a red circle, an orange one."""
    return f"{'an' if pair.color[0] in 'aeiou' else 'a'} {pair}"


def _colors(scene: Scene) -> list[Fact]:
    return [Fact(COLOR, pair.shape, pair.color, (pair,)) for pair in _steady_pairs(scene.actors)]


def _shapes(scene: Scene) -> list[Fact]:
    return [Fact(SHAPE, pair.color, pair.shape, (pair,)) for pair in _steady_pairs(scene.actors)]


def _count(scene: Scene) -> list[Fact]:
    """Of all that are ever there."""
    return [Fact(COUNT, "", NUMBERS[len(scene.actors)], _pairs(scene.actors))]


def _directions(scene: Scene) -> list[Fact]:
    moving = [actor for actor in scene.actors if actor.life.moves_seconds is not None]
    return [Fact(DIRECTION, name, actor.direction, actor.pairs) for actor in moving for name in _names(actor)]


def _orders(scene: Scene) -> list[Fact]:
    """Who is first, last, or next after another. Those that enter together are nobody's answer."""
    by_time = sorted(scene.actors, key=_entrance)
    entrances = [list(together) for _, together in groupby(by_time, key=_entrance)]
    if len(entrances) == 1:
        return []
    ends = (FIRST, entrances[0]), (LAST, entrances[-1])
    facts = [Fact(texts, "", who[0].shape, who[0].pairs) for texts, who in ends if len(who) == 1]
    for earlier, later in pairwise(entrances):
        if len(later) == 1:
            asked = [(name, actor) for actor in earlier for name in _names(actor)]
            facts += [Fact(NEXT, name, later[0].shape, _pairs([actor, later[0]])) for name, actor in asked]
    return facts


def _times(scene: Scene) -> list[Fact]:
    brief = [(actor, third) for actor in scene.actors if (third := _third(actor, scene)) is not None]
    return [Fact(WHEN, name, THIRDS[third], actor.pairs) for actor, third in brief for name in _names(actor)]


def _presence(scene: Scene) -> list[Fact]:
    """As often there as not. What is not there is like something there: in shape, color, both or neither."""
    chance = Random(f"{scene.name} yes or no")
    shown = _pairs(scene.actors)
    if chance.random() < 0.5:
        pair = chance.choice(shown)
        return [Fact(YES_NO, a(pair), "yes", (pair,))]
    shapes, colors = {pair.shape for pair in shown}, {pair.color for pair in shown}
    misses: dict[tuple[bool, bool], list[Pair]] = {}
    for miss in sorted(allowed_pairs(scene.split).difference(shown)):
        misses.setdefault((miss.shape in shapes, miss.color in colors), []).append(miss)
    pair = chance.choice(chance.choice(list(misses.values())))
    return [Fact(YES_NO, a(pair), "no", (pair,))]


def _changes(scene: Scene) -> list[Fact]:
    changing = [actor for actor in scene.actors if actor.life.changes_seconds is not None]
    return [Fact(CHANGE, actor.shape, actor.colors[-1], actor.pairs) for actor in changing]


FACTS: dict[Kind, Callable[[Scene], list[Fact]]] = {
    Kind.COLOR: _colors,
    Kind.SHAPE: _shapes,
    Kind.COUNT: _count,
    Kind.DIRECTION: _directions,
    Kind.ORDER: _orders,
    Kind.WHEN: _times,
    Kind.YES_NO: _presence,
    Kind.CHANGE: _changes,
}


def _pairs(actors: Iterable[Actor]) -> tuple[Pair, ...]:
    return tuple(pair for actor in actors for pair in actor.pairs)


def _steady_pairs(actors: Iterable[Actor]) -> tuple[Pair, ...]:
    return _pairs(actor for actor in actors if len(actor.colors) == 1)


def _names(actor: Actor) -> list[str]:
    return [actor.shape, *map(str, _steady_pairs([actor]))]


def _entrance(actor: Actor) -> int:
    return actor.life.enters_seconds


def _third(actor: Actor, scene: Scene) -> int | None:
    """Which third of the clip holds all that is seen of the actor; None when more than one does."""
    enters, leaves = actor.life.enters_seconds, actor.life.leaves_seconds
    leaves = scene.seconds if leaves is None else leaves
    for third in range(3):
        if third * scene.seconds <= 3 * enters < 3 * leaves <= (third + 1) * scene.seconds:
            return third
    return None
