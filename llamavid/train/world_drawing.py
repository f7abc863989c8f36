"""A scene at a time as pixels: uint8 [H, W, 3] rgb, square, with smooth edges.

Knows where everything is from the scene; decides nothing.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from llamavid.train.world_scene import Actor, Background, Point, Scene

SIDE_PIXELS = 128
FINER = 4  # edges are drawn this many times larger, then averaged

Rgb = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

RGB: dict[str, Rgb] = {
    "red": (220, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 230, 40),
    "green": (35, 175, 70),
    "blue": (40, 90, 240),
    "purple": (150, 60, 205),
    "pink": (255, 150, 195),
    "white": (248, 248, 248),
}


def _around(*radii: float, points: int) -> list[Point]:
    """`points` corners at even angles from the top, at each of `radii` in turn."""
    turns = [(radii[i % len(radii)], 2 * math.pi * i / points) for i in range(points)]
    return [Point(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in turns]


def _cross(arm: float) -> list[Point]:
    """Two bars of half width `arm`."""
    end = math.sqrt(1 - arm**2)
    corner = [Point(-arm, -arm), Point(-arm, -end), Point(arm, -end)]  # of one arm, the upper one
    turned = [corner]
    for _ in range(3):
        turned.append([Point(-y, x) for x, y in turned[-1]])
    return [point for arm_corners in turned for point in arm_corners]


def _turned(points: list[Point], degrees: float) -> list[Point]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [Point(cos * x - sin * y, sin * x + cos * y) for x, y in points]


# Corners inside the circle of radius 1 around (0, 0).
OUTLINES: dict[str, list[Point]] = {
    "circle": _around(0.88, points=48),
    "square": _turned(_around(1, points=4), 45),
    "triangle": _around(1, points=3),
    "star": _around(1, 0.46, points=10),
    "cross": _cross(0.33),
}


class Figure(NamedTuple):
    """An actor at a time. Lengths in picture sides."""

    shape: str
    rgb: Rgb
    center: Point
    radius: float
    tilt_degrees: float


def frames(scene: Scene, fps: float, *, side_pixels: int = SIDE_PIXELS) -> Pixels:
    """The scene's pictures at 0, 1 / fps, 2 / fps, ... seconds: uint8 [T, H, W, 3]; T is 1 for a still."""
    count = max(1, round(scene.seconds * fps))
    return np.stack([picture(scene, index / fps, side_pixels=side_pixels) for index in range(count)])


def picture(scene: Scene, seconds: float, *, side_pixels: int = SIDE_PIXELS) -> Pixels:
    """uint8 [H, W, 3], not to be written to: while nothing happens it is the same array again."""
    there = (actor for actor in scene.actors if actor.life.presence(seconds) > 0)
    return _drawn(scene.background, tuple(_figure(actor, seconds) for actor in there), side_pixels)


def _figure(actor: Actor, seconds: float) -> Figure:
    first, last = (np.array(RGB[color]) for color in (actor.colors[0], actor.colors[-1]))
    red, green, blue = (first + actor.life.change(seconds) * (last - first)).round().astype(int).tolist()
    radius = actor.radius * actor.life.presence(seconds)
    return Figure(actor.shape, (red, green, blue), actor.center(seconds), radius, actor.tilt_degrees)


@lru_cache(maxsize=1)
def _drawn(background: Background, figures: tuple[Figure, ...], side_pixels: int) -> Pixels:
    canvas = Image.fromarray(_toned(background, side_pixels))
    for figure in figures:
        mask, corner = _mask(figure, side_pixels)
        canvas.paste(figure.rgb, corner, mask)
    pixels = np.array(canvas)
    pixels.setflags(write=False)
    return pixels


@lru_cache(maxsize=1)
def _toned(background: Background, side_pixels: int) -> Pixels:
    """uint8 [H, W, 3]: the tones meet at the picture's center, half of each."""
    angle = math.radians(background.angle_degrees)
    line = np.linspace(-0.5, 0.5, side_pixels)
    way = 0.5 + (math.cos(angle) * line + math.sin(angle) * line[:, None]) / math.sqrt(2)  # [H, W], 0 to 1
    first, last = (np.array(tone, float) for tone in background.tones)
    return (first + way[..., None] * (last - first)).round().astype(np.uint8)


def _mask(figure: Figure, side_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
    """How much of each pixel the figure covers, 0 to 255, and the pixel where that goes."""
    radius, center = figure.radius * side_pixels, Point(*(at * side_pixels for at in figure.center))
    left, top = math.floor(center.x - radius), math.floor(center.y - radius)
    side = math.ceil(2 * radius) + 1
    fine = Image.new("L", (side * FINER, side * FINER))
    corners = [
        (FINER * (center.x + radius * x - left) - 0.5, FINER * (center.y + radius * y - top) - 0.5)
        for x, y in _turned(OUTLINES[figure.shape], figure.tilt_degrees)
    ]
    ImageDraw.Draw(fine).polygon(corners, fill=255)
    return fine.reduce(FINER), (left, top)
