"""The tiny model's beginnings: its encoder learns what pictures show; its start is a checkpoint like any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llamavid.model import load_model
from llamavid.runtime.pixels import pixels_from_rgb
from llamavid.train.little_world import scenes
from llamavid.train.tiny_encoder import TINY_VISION, Labels, labels, pretrain
from llamavid.train.tiny_start import TINY, write_start
from llamavid.train.world_drawing import RGB, picture
from llamavid.train.world_scene import COLORS, SHAPES


def pictures(count: int) -> tuple[torch.Tensor, Labels]:
    stills = list(scenes("train", 0, count, stills=True))
    rgb = np.stack([picture(scene, 0.0) for scene in stills])
    pixels = pixels_from_rgb(rgb, image_size=TINY_VISION.image_size)
    return torch.from_numpy(pixels), labels([(scene, 0.0) for scene in stills], TINY_VISION.grid)


def test_labels_name_every_actor_and_the_patches_that_show_it() -> None:
    agree: dict[str, list[bool]] = {shape: [] for shape in SHAPES}
    for scene in scenes("train", 0, 20, stills=True):
        truth = labels([(scene, 0.0)], TINY_VISION.grid)
        found = {
            COLORS[color]: SHAPES[shape] for color, shape in enumerate(truth.color_shapes[0]) if shape >= 0
        }
        assert found == {actor.colors[0]: actor.shape for actor in scene.actors}
        drawn = picture(scene, 0.0).astype(int)
        step = len(drawn) // TINY_VISION.grid
        middles = drawn[step // 2 :: step, step // 2 :: step].reshape(-1, 3)
        for middle, color, shape in zip(middles, truth.patch_colors[0], truth.patch_shapes[0], strict=True):
            if color:
                agree[SHAPES[shape - 1]].append(np.abs(middle - RGB[COLORS[color - 1]]).max() < 30)
    assert np.mean(agree["circle"]) == 1
    assert all(
        np.mean(some) > 0.5 for some in agree.values()
    )  # other shapes leave parts of their circle bare


def test_the_encoder_learns_to_be_read() -> None:
    pixels, truth = pictures(64)
    losses: list[float] = []
    encoder, reader = pretrain(
        pixels, truth, steps=25, batch_size=16, on_step=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    with torch.inference_mode():
        right, error = reader.accuracy(encoder(pixels), truth)
    assert 0 <= right <= 1
    assert error < 0.5  # of a side


def test_the_start_is_a_checkpoint_in_the_release_layout(tmp_path: Path) -> None:
    encoder, _ = pretrain(*pictures(4), steps=1, batch_size=4)
    model = load_model(write_start(tmp_path / "start", encoder, ["What color is the star?"]))
    assert model.config == TINY
    assert torch.equal(model.vision.cls_token, encoder.cls_token)
    ids = model.question_tokenizer.ids("What color is the star?")
    assert ids.shape == (1, 8)  # each word is one piece
    features = model.encode_frames(torch.zeros(2, 3, 112, 112))
    assert model.frame_tokens(features, "What color is the star?").shape == (2, 2, TINY.language.hidden)
