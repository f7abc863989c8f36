"""What moments of the little world show, as numbers: the truth that the tiny model's parts are pretrained on.

    found = tracks(scene, [0, 1, 2])
    content_states(found, 3)                       everything there is          float32 [T, CONTENT]
    context_states(found, 3, asked("... circle"))  what a question speaks of    float32 [T, CONTEXT]

Colors and shapes are told one by one and never as a pair: which color is whose follows from the places, or
from asking. So a pair that was never seen is told like any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llamavid.train.world_scene import CHANGING_SECONDS, COLORS, LEAD_SECONDS, SHAPES, Actor, Scene

CONTENT = 3 * (len(COLORS) + len(SHAPES))  # of each color and shape: is it there, x, y
CONTEXT = 1 + len(COLORS) + len(SHAPES) + 2  # is it there, its color, its shape, x, y
_AHEAD = LEAD_SECONDS - CHANGING_SECONDS / 2  # an event is half done so many seconds before its date

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """The color and the shape that a question names, where it names one."""

    color: str | None
    shape: str | None


@dataclass(frozen=True)
class Track:
    """An actor at T moments.

    shape: its row in SHAPES.
    there: bool [T].
    colors: int64 [T], rows in COLORS.
    places: float32 [T, 2], its center, from -1 (left, above) to 1.
    """

    shape: int
    there: npt.NDArray[np.bool_]
    colors: npt.NDArray[np.int64]
    places: Floats


def asked(text: str) -> Asked:
    """What a text names: its first color and its first shape."""
    words = re.findall(r"[a-z]+", text.lower())
    color = next((word for word in words if word in COLORS), None)
    return Asked(color, next((word for word in words if word in SHAPES), None))


def tracks(scene: Scene, seconds: npt.ArrayLike) -> list[Track]:
    """Every actor of the scene, in its order."""
    moments = np.asarray(seconds, np.float32)
    return [_track(actor, moments) for actor in scene.actors]


def _track(actor: Actor, seconds: Floats) -> Track:
    life = actor.life
    first, last = COLORS.index(actor.colors[0]), COLORS.index(actor.colors[-1])
    begin, end = life.moves_seconds or (0, 1)
    way = np.clip((seconds - begin) / (end - begin), 0, 1)[:, None]
    start = np.asarray(actor.start, np.float32)
    return Track(
        SHAPES.index(actor.shape),
        _done(life.enters_seconds, seconds) & ~_done(life.leaves_seconds, seconds),
        np.where(_done(life.changes_seconds, seconds), last, first),
        2 * (start + way * (np.asarray(actor.end, np.float32) - start)) - 1,
    )


def _done(event_seconds: int | None, seconds: Floats) -> npt.NDArray[np.bool_]:
    return seconds >= (np.inf if event_seconds is None else event_seconds - _AHEAD)


def content_states(found: list[Track], moments: int) -> Floats:
    """[T, CONTENT]. For each color, then each shape: 1 if it is there, and its place; zeros if not."""
    states = np.zeros((moments, len(COLORS) + len(SHAPES), 3), np.float32)
    for track in found:
        (shown,) = track.there.nonzero()
        for rows in (track.colors[shown], len(COLORS) + track.shape):
            states[shown, rows, 0] = 1
            states[shown, rows, 1:] = track.places[shown]
    return states.reshape(len(states), CONTENT)


def context_states(found: list[Track], moments: int, meant: Asked) -> Floats:
    """[T, CONTEXT]. 1, the color and the shape (one of each is 1) and the place of the actor meant.

    Zeros while it is not there, and when nothing is named.
    """
    states = np.zeros((moments, CONTEXT), np.float32)
    for track in found:
        (shown,) = (track.there & _is_meant(track, meant)).nonzero()
        states[shown, 0] = states[shown, 1 + track.colors[shown]] = 1
        states[shown, 1 + len(COLORS) + track.shape] = 1
        states[shown, -2:] = track.places[shown]
    return states


def _is_meant(track: Track, meant: Asked) -> npt.NDArray[np.bool_]:
    named = meant != Asked(None, None) and meant.shape in (None, SHAPES[track.shape])
    return named & ((meant.color is None) | (track.colors == COLORS.index(meant.color or COLORS[0])))
