"""The tiny model's eyes, pretrained on pictures of the little world: encoder, Q-Former, context attention.

They learn together, each with a linear reading head that is thrown away:

    patches                    which shape and color is at each of them
    mean of the patches        everything there is: `content_states` (it becomes the content token)
    what a question gathers    what the question speaks of: `context_states` (it becomes the context token)

EVA-g and InstructBLIP's Q-Former learned from pictures and captions; this stands for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from llamavid.config import Preprocessing
from llamavid.model.llamavid import LlamaVid
from llamavid.train.pretraining import Task
from llamavid.train.world_casting import allowed_pairs, scenes
from llamavid.train.world_drawing import picture
from llamavid.train.world_questions import any_question
from llamavid.train.world_scene import COLORS, SHAPES, Pair, Scene
from llamavid.train.world_state import CONTENT, CONTEXT, Track, asked, content_states, context_states, tracks

_INSIDE = 0.8  # of an actor's radius: a patch whose center is nearer shows it
_QUESTIONS = 2  # about one picture
_GRAINS = 4  # patterns of noise that the pictures of a batch share


@dataclass(frozen=True)
class PictureBatch:
    """n pictures and q questions about each. N patches; 0 = nothing there.

    rgb: uint8 [n, side, side, 3].
    patch_shapes, patch_colors: int64 [n, N].
    content: float32 [n, CONTENT].
    questions: n * q texts, those of a picture together.
    context: float32 [n * q, CONTEXT].
    lit: float32 [n * q, N], 1 where the actor meant is; all 0 when it is not there.
    """

    rgb: Tensor
    patch_shapes: Tensor
    patch_colors: Tensor
    content: Tensor
    questions: list[str]
    context: Tensor
    lit: Tensor

    def to(self, device: torch.device) -> PictureBatch:
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def picture_batch(
    moments: list[tuple[Scene, float]], grid: int, chance: Random, pairs: Sequence[Pair]
) -> PictureBatch:
    """About scenes at times in seconds, with grid x grid patches; `pairs` may be asked about."""
    found = [tracks(scene, [seconds]) for scene, seconds in moments]
    maps = [_patch_map(some, scene, grid) for some, (scene, _) in zip(found, moments, strict=True)]
    asked_of = [index for index in range(len(moments)) for _ in range(_QUESTIONS)]
    texts = [any_question(moments[index][0], chance, pairs) for index in asked_of]
    contexts = [context_states(found[i], 1, asked(text))[0] for i, text in zip(asked_of, texts, strict=True)]
    lit = [_lit(maps[index], context) for index, context in zip(asked_of, contexts, strict=True)]
    return PictureBatch(
        _stacked([picture(scene, seconds) for scene, seconds in moments]),
        _stacked([shapes for shapes, _ in maps]),
        _stacked([colors for _, colors in maps]),
        _stacked([content_states(some, 1)[0] for some in found]),
        texts,
        _stacked(contexts),
        _stacked(lit),
    )


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def picture_batches(seed: int, *, pictures: int, grid: int) -> Iterator[PictureBatch]:
    """Without end, no picture twice. Any of a scene's actors may be away, as before they enter a clip."""
    chance = Random(f"lessons {seed}")
    stills, pairs = scenes("train", seed, 10**9, form="still"), sorted(allowed_pairs("train"))
    while True:
        drawn = [_thinned(next(stills), chance) for _ in range(pictures)]
        yield picture_batch([(scene, 0.0) for scene in drawn], grid, chance, pairs)


def _thinned(scene: Scene, chance: Random) -> Scene:
    """Half of the time some actors go; those left are still each other's only ones of a shape and a color."""
    if chance.random() < 0.5:
        return scene
    return replace(scene, actors=tuple(chance.sample(scene.actors, chance.randint(0, len(scene.actors)))))


def _patch_map(found: list[Track], scene: Scene, grid: int) -> np.ndarray:
    """int64 [2, grid * grid]: shape and color at each patch, counted from 1."""
    shown = np.zeros((2, grid, grid), np.int64)
    centers = (np.arange(grid) + 0.5) / grid * 2 - 1
    for track, actor in zip(found, scene.actors, strict=True):
        if track.there[0]:
            x, y = track.places[0]
            near = np.hypot(centers[:, None] - y, centers[None] - x) < 2 * _INSIDE * actor.radius
            shown[:, near] = [[1 + track.shape], [1 + track.colors[0]]]
    return shown.reshape(2, -1)


def _lit(shown: np.ndarray, context: np.ndarray) -> np.ndarray:
    """float32 [N]: a color is one actor's, so it tells its patches."""
    color = 1 + context[1 : 1 + len(COLORS)].argmax()
    return ((shown[1] == color) & (context[0] > 0)).astype(np.float32)


class Reader(nn.Module):
    """The linear heads. features [n, 1+N, C]; gathered [p, C] is what a question's attention brings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_shape = nn.Linear(width, 1 + len(SHAPES))
        self.patch_color = nn.Linear(width, 1 + len(COLORS))
        self.content = nn.Linear(width, CONTENT)
        self.context = nn.Linear(width, CONTEXT)


def sight_loss(model: LlamaVid, reader: Reader, pixels: Tensor, truth: PictureBatch) -> Tensor:
    """The mean of what the heads get wrong, and of attention that falls beside the actor meant: a scalar.

    pixels: float32 [n, 3, S, S], prepared as `seen_through` does.
    """
    features = model.vision(pixels).float()
    patches = features[:, 1:]
    weights, gathered = look(model, features, truth.questions)
    mass = (weights * truth.lit[:, None]).sum(-1)
    seen = truth.lit.any(-1)
    return (
        F.cross_entropy(reader.patch_shape(patches).flatten(0, 1), truth.patch_shapes.flatten())
        + F.cross_entropy(reader.patch_color(patches).flatten(0, 1), truth.patch_colors.flatten())
        + _squared(reader.content(patches.mean(1)), truth.content)
        + _squared(reader.context(gathered), truth.context)
        - 0.2 * mass[seen].clamp_min(1e-6).log().mean()
    )


def _squared(read: Tensor, truth: Tensor) -> Tensor:
    return (read - truth).square().sum(-1).mean()


def look(model: LlamaVid, features: Tensor, questions: list[str]) -> tuple[Tensor, Tensor]:
    """Where questions look, float32 [p, M, N], and what that brings, [p, C]: attention up to its projection.

    features: float32 [n, 1+N, C]; the questions of a picture are together, as many for each.
    """
    ids = [torch.from_numpy(model.question_tokenizer.ids(question)[0]) for question in questions]
    mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    paired = features.repeat_interleave(len(questions) // len(features), dim=0)
    device = features.device
    hidden = model.text_decoder(paired, pad_sequence(ids, batch_first=True).to(device), mask.to(device))
    patches = paired[:, 1:]
    keys = model.compressor.key_projector(patches)
    scores = model.compressor.text_query(hidden) @ keys.transpose(1, 2) / patches.shape[-1] ** 0.5
    weights = scores.float().softmax(dim=-1)
    return weights, (weights @ patches).mean(dim=1)


@torch.inference_mode()
def accuracy(model: LlamaVid, reader: Reader, *, pictures: int) -> dict[str, float]:
    """What the heads read right of held-out pictures, unseen pairs among them.

    content: every color and every shape that is there, and no other. there, color, shape: of what is asked.
    place: an error, in picture sides.
    """
    stills = scenes("heldout", 0, pictures, form="still")
    device = reader.content.weight.device
    grid, pairs = model.config.vision.grid, sorted(allowed_pairs("heldout"))
    truth = picture_batch([(scene, 0.0) for scene in stills], grid, Random(0), pairs).to(device)
    features = model.vision(seen_through(truth.rgb, model.config.preprocessing))
    _, gathered = look(model, features, truth.questions)
    content, context = reader.content(features[:, 1:].mean(1)), reader.context(gathered)
    flags = slice(0, None, 3)
    seen = truth.context[:, 0] > 0

    def same(part: slice) -> Tensor:
        return context[seen, part].argmax(-1) == truth.context[seen, part].argmax(-1)

    right = {
        "content": ((content[:, flags] > 0.5) == (truth.content[:, flags] > 0.5)).all(-1),
        "there": (context[:, 0] > 0.5) == seen,
        "color": same(slice(1, 1 + len(COLORS))),
        "shape": same(slice(1 + len(COLORS), -2)),
    }
    place = (context - truth.context)[seen, -2:].norm(dim=-1).mean() / 2
    return {name: float(some.float().mean()) for name, some in right.items()} | {"place": float(place)}


def seen_through(rgb: Tensor, constants: Preprocessing) -> Tensor:
    """Drawn pictures uint8 [n, side, side, 3] as a video's frames reach the encoder, float32 [n, 3, S, S].

    H.264 keeps color at half the sharpness, and adds a little noise.
    """
    pictures = rgb.permute(0, 3, 1, 2).contiguous().float() / 255
    luma = (pictures * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    chroma = F.interpolate(F.avg_pool2d(pictures - luma, 2), scale_factor=2)
    side = constants.image_size
    sized = F.interpolate(luma + chroma, (side, side), mode="bicubic", antialias=True)
    grain = torch.randn(_GRAINS, 3, side, side) * torch.rand(1) * 0.02
    grainy = sized + grain[torch.randint(_GRAINS, (len(sized),))]
    mean, std = (torch.tensor(values)[:, None, None] for values in (constants.mean, constants.std))
    return (grainy.clamp(0, 1) - mean) / std


def sight_task(model: LlamaVid, *, pictures: int = 64) -> Task[PictureBatch]:
    """Teaches `model`'s encoder, text decoder, query and key projections."""
    device = model.compressor.key_projector.weight.device
    reader = Reader(model.config.vision.width).to(device)
    parts = (
        model.vision,
        model.text_decoder,
        model.compressor.query_projector,
        model.compressor.key_projector,
    )

    def loss(truth: PictureBatch) -> Tensor:
        pixels = seen_through(truth.rgb, model.config.preprocessing)
        return sight_loss(model, reader, pixels.to(device), truth.to(device))

    def taught(seed: int) -> Iterator[PictureBatch]:
        return picture_batches(seed, pictures=pictures, grid=model.config.vision.grid)

    learner = nn.ModuleList([*parts, reader])
    return Task(learner, taught, loss, lambda pictures: accuracy(model, reader, pictures=pictures))
