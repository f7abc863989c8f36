"""The tiny model's vision encoder, pretrained on still pictures of the little world.

EVA's architecture, small, learns to say of every patch which shape and color is there, and of the mean of
the patches (what becomes the content token) which colors are there, in which shape and where. The reading
heads are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llamavid.config import VisionConfig
from llamavid.model.vision import VisionEncoder
from llamavid.train.world_scene import COLORS, SHAPES, Actor, Scene

TINY_VISION = VisionConfig(image_size=112, patch_size=14, width=176, depth=4, heads=2, mlp_width=768)
_INSIDE = 0.8  # of an actor's radius: a patch whose center is nearer shows it
_PRESENT = 0.5


@dataclass(frozen=True)
class Labels:
    """What n pictures show. N patches, 0 = nothing there.

    patch_shapes, patch_colors: int64 [n, N].
    color_shapes: int64 [n, colors], the shape that has the color, -1 for none.
    color_places: float32 [n, colors, 2], its center, x and y from 0 to 1.
    """

    patch_shapes: Tensor
    patch_colors: Tensor
    color_shapes: Tensor
    color_places: Tensor

    def at(self, index: Tensor) -> Labels:
        return Labels(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def labels(moments: Sequence[tuple[Scene, float]], grid: int) -> Labels:
    """Of pictures of scenes at times in seconds, with grid x grid patches."""
    count = len(moments)
    shapes, colors = np.zeros((2, count, grid, grid), np.int64)
    color_shapes = np.full((count, len(COLORS)), -1, np.int64)
    places = np.zeros((count, len(COLORS), 2), np.float32)
    centers = (np.arange(grid) + 0.5) / grid
    for index, (scene, seconds) in enumerate(moments):
        for actor in scene.actors:
            if actor.life.presence(seconds) < _PRESENT:
                continue
            x, y = actor.center(seconds)
            color, shape = COLORS.index(_color(actor, seconds)), SHAPES.index(actor.shape)
            near = np.hypot(centers[:, None] - y, centers[None] - x) < _INSIDE * actor.radius
            shapes[index][near], colors[index][near] = shape + 1, color + 1
            color_shapes[index, color], places[index, color] = shape, (x, y)
    flat = (count, grid * grid)
    return Labels(
        torch.from_numpy(shapes.reshape(flat)),
        torch.from_numpy(colors.reshape(flat)),
        torch.from_numpy(color_shapes),
        torch.from_numpy(places),
    )


def _color(actor: Actor, seconds: float) -> str:
    return actor.colors[-1 if actor.life.change(seconds) > _PRESENT else 0]


class Reader(nn.Module):
    """Linear heads over the encoder; `loss` and `accuracy` say how well it can be read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch_shape = nn.Linear(width, 1 + len(SHAPES))
        self.patch_color = nn.Linear(width, 1 + len(COLORS))
        self.color_shape = nn.Linear(width, len(COLORS) * (1 + len(SHAPES)))
        self.color_place = nn.Linear(width, len(COLORS) * 2)

    def loss(self, features: Tensor, truth: Labels) -> Tensor:
        """features [n, 1+N, C] -> the mean of four losses."""
        patches = features[:, 1:]
        mean = patches.mean(dim=1)
        shape_of, place = self._read(mean)
        there = truth.color_shapes >= 0
        return (
            F.cross_entropy(self.patch_shape(patches).flatten(0, 1), truth.patch_shapes.flatten())
            + F.cross_entropy(self.patch_color(patches).flatten(0, 1), truth.patch_colors.flatten())
            + F.cross_entropy(shape_of.flatten(0, 1), (truth.color_shapes + 1).flatten())
            + 10 * F.mse_loss(place[there], truth.color_places[there])
        )

    @torch.inference_mode()
    def accuracy(self, features: Tensor, truth: Labels) -> tuple[float, float]:
        """Colors whose shape (or absence) is read right off the mean, and mean error of the places."""
        shape_of, place = self._read(features[:, 1:].mean(dim=1))
        there = truth.color_shapes >= 0
        right = shape_of.argmax(-1) == truth.color_shapes + 1
        error = (place - truth.color_places)[there].norm(dim=-1).mean()
        return float(right[there].float().mean()), float(error)

    def _read(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        shape_of = self.color_shape(mean).unflatten(-1, (len(COLORS), -1))
        return shape_of, self.color_place(mean).unflatten(-1, (len(COLORS), 2))


def pretrain(
    pixels: Tensor,
    truth: Labels,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[VisionEncoder, Reader]:
    """An encoder that has learned pictures `pixels` [n, 3, 112, 112], and the heads that read it."""
    torch.manual_seed(seed)
    encoder, reader = VisionEncoder(TINY_VISION), Reader(TINY_VISION.width)
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    nn.init.trunc_normal_(encoder.cls_token, std=0.02)
    learned = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05
    )
    for step in range(steps):
        index = torch.randint(len(pixels), (batch_size,))
        loss = reader.loss(encoder(pixels[index]), truth.at(index))
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(step, loss.item())
    return encoder.eval(), reader.eval()
