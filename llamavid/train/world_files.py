"""A scene as files: an H.264 clip or a PNG picture, and what is said about it as LLaVA JSON.

    {"id": "train-0-clip-17-color", "kind": "color", "unseen_pair": false, "seconds": 9,
     "conversations": [{"from": "human", "value": "<image>\\nWhat color is the circle?"},
                       {"from": "gpt", "value": "red"}],
     "video": "clips/train-0-clip-17.mp4"}

A picture has `image` in the place of `video`, and 0 seconds. Paths are relative to the data set's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import TypedDict

import av
from PIL import Image

from llamavid.train.world_captions import caption, caption_of
from llamavid.train.world_drawing import SIDE_PIXELS, Pixels, picture
from llamavid.train.world_questions import DESCRIBE_ALL, DESCRIBE_ONE, Question, place, questions
from llamavid.train.world_scene import UNSEEN_PAIRS, Scene

CLIP_FPS = 8
# One thread, so that the same scene gives the same bytes. 18 is visually lossless (x264's documentation).
X264 = {"preset": "veryfast", "crf": "18", "threads": "1"}

Turn = TypedDict("Turn", {"from": str, "value": str})


class Item(TypedDict, total=False):
    """One entry of LLaVA JSON: `video` or `image`, and all of the others."""

    id: str
    video: str
    image: str
    conversations: list[Turn]
    kind: str
    unseen_pair: bool
    seconds: int


@dataclass(frozen=True)
class Entry:
    """What a data set holds about a scene.

    captions: of the whole, and of each actor. turns: all of its questions in one conversation.
    """

    captions: list[Item]
    turns: Item
    questions: list[Item]


def write_scene(scene: Scene, folder: Path) -> Entry:
    """Draw it into `clips/` or `stills/` of the data set's folder."""
    if scene.is_still:
        Image.fromarray(picture(scene, 0)).save(folder / media_path(scene))
    else:
        count = scene.seconds * CLIP_FPS
        write_clip(folder / media_path(scene), (picture(scene, i / CLIP_FPS) for i in range(count)))
    return entry(scene)


def media_path(scene: Scene) -> str:
    return f"stills/{scene.name}.png" if scene.is_still else f"clips/{scene.name}.mp4"


def write_clip(path: Path, pictures: Iterable[Pixels]) -> None:
    """H.264 in MP4 from uint8 [H, W, 3] pictures of SIDE_PIXELS, CLIP_FPS of them a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options=X264)
        stream.width = stream.height = SIDE_PIXELS
        stream.pix_fmt = "yuv420p"
        for index, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, CLIP_FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def entry(scene: Scene) -> Entry:
    asked = questions(scene)
    mixed = Random(f"{scene.name} turns").sample(asked, len(asked))
    return Entry(
        _captions(scene),
        _item(scene, "turns", _said(mixed), unseen_pair=any(question.unseen_pair for question in asked)),
        [_item(scene, q.kind.value, _said([q]), unseen_pair=q.unseen_pair) for q in asked],
    )


def _captions(scene: Scene) -> list[Item]:
    """Each is asked for in words that tell what of the scene to look at."""
    chance = Random(f"{scene.name} captions")
    whole = chance.choice(DESCRIBE_ALL).format(place=place(scene)), caption(scene)
    every = [(scene.actors, "caption", whole)]
    for actor in scene.actors:
        told = chance.choice(DESCRIBE_ONE).format(actor.shape), caption_of(actor)
        every.append(((actor,), f"{actor.shape}-caption", told))
    return [
        _item(
            scene, kind, [told], unseen_pair=any(pair in UNSEEN_PAIRS for one in actors for pair in one.pairs)
        )
        for actors, kind, told in every
    ]


def _said(asked: Sequence[Question]) -> list[tuple[str, str]]:
    return [(question.text, question.answer) for question in asked]


def _item(scene: Scene, kind: str, said: Sequence[tuple[str, str]], *, unseen_pair: bool) -> Item:
    """The first thing that the human says has the picture or video in front."""
    turns: list[Turn] = []
    for human, gpt in said:
        turns += [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    item: Item = {
        "id": f"{scene.name}-{kind}",
        "kind": kind,
        "unseen_pair": unseen_pair,
        "seconds": scene.seconds,
        "conversations": turns,
    }
    item["image" if scene.is_still else "video"] = media_path(scene)
    return item
