"""The tiny model begins: what it is told is true, its parts learn it, its start is a checkpoint like any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from llamavid.errors import UsageError
from llamavid.model import load_model
from llamavid.runtime.pixels import pixels_from_rgb
from llamavid.train.pretraining import Schedule, Task, pretrain
from llamavid.train.tiny_language import batches_of_items, language_task
from llamavid.train.tiny_pretraining import main, pretrained_start
from llamavid.train.tiny_sight import look, picture_batch, picture_batches, seen_through, sight_task
from llamavid.train.tiny_start import TINY, new_model, write_tokenizers
from llamavid.train.world_casting import allowed_pairs, scenes
from llamavid.train.world_drawing import RGB, picture
from llamavid.train.world_scene import COLORS, SHAPES
from llamavid.train.world_state import Asked, asked, content_states, context_states, tracks

PAIRS = sorted(allowed_pairs("train"))


@pytest.fixture
def tokenizers(tmp_path: Path) -> Path:
    write_tokenizers(tmp_path / "made", ["What color is the star? red"])
    return tmp_path / "made"


def test_a_question_names_its_color_and_its_shape() -> None:
    assert asked("Is there a red circle in the video?") == Asked("red", "circle")
    assert asked("What shape is green?") == Asked("green", None)
    assert asked("Does the star move left, right, up or down?") == Asked(None, "star")
    assert asked("Which shape appears first?") == Asked(None, None)


def test_states_tell_what_the_scene_says_second_by_second() -> None:
    for scene in scenes("train", 3, 40):
        found = tracks(scene, range(scene.seconds))
        content = content_states(found, scene.seconds).reshape(scene.seconds, -1, 3)
        for second in range(scene.seconds):
            there = {actor.shape: actor for actor in scene.actors if actor.life.presence(second) == 1}
            shapes = content[second, len(COLORS) :]
            assert {SHAPES[row] for row in shapes[:, 0].nonzero()[0]} == set(there)
            for shape, actor in there.items():
                expected = 2 * np.array(actor.center(second)) - 1
                np.testing.assert_allclose(shapes[SHAPES.index(shape), 1:], expected, atol=1e-6)
                color = COLORS.index(actor.colors[round(actor.life.change(second)) * (len(actor.colors) - 1)])
                meant = context_states(found, scene.seconds, Asked(COLORS[color], shape))[second]
                assert meant[0] == meant[1 + color] == meant[1 + len(COLORS) + SHAPES.index(shape)] == 1
                np.testing.assert_allclose(meant[-2:], expected, atol=1e-6)
            for shape in set(SHAPES) - set(there):
                assert not context_states(found, scene.seconds, Asked(None, shape))[second].any()


def test_a_batch_names_the_patches_that_show_an_actor() -> None:
    grid = TINY.vision.grid
    agree: dict[str, list[bool]] = {shape: [] for shape in SHAPES}
    drawn = list(scenes("train", 0, 20, form="still"))
    truth = picture_batch([(scene, 0.0) for scene in drawn], grid, Random(0), PAIRS)
    for scene, colors, shapes in zip(drawn, truth.patch_colors, truth.patch_shapes, strict=True):
        rgb = picture(scene, 0.0).astype(int)
        step = len(rgb) // grid
        middles = rgb[step // 2 :: step, step // 2 :: step].reshape(-1, 3)
        for middle, color, shape in zip(middles, colors, shapes, strict=True):
            if color:
                agree[SHAPES[shape - 1]].append(bool(np.abs(middle - RGB[COLORS[color - 1]]).max() < 30))
    assert np.mean(agree["circle"]) == 1
    assert all(np.mean(some) > 0.5 for some in agree.values())  # others leave parts of their circle bare


def test_a_batch_lights_the_actor_that_is_asked_about() -> None:
    drawn = list(scenes("train", 1, 40, form="still"))
    truth = picture_batch([(scene, 0.0) for scene in drawn], TINY.vision.grid, Random(0), PAIRS)
    assert len(truth.questions) == 2 * len(drawn) == len(truth.context) == len(truth.lit)
    present = truth.context[:, 0] > 0
    assert 0.2 < present.float().mean() < 0.9
    assert not truth.lit[~present].any()
    colors = truth.patch_colors.repeat_interleave(2, dim=0)
    for text, lit, patches in zip(truth.questions, truth.lit, colors, strict=True):
        if lit.any():
            (color,) = set(patches[lit > 0].tolist())
            assert asked(text).color in (None, COLORS[color - 1])


def test_batches_never_show_a_pair_that_is_kept_for_the_end() -> None:
    taught = picture_batches(0, pictures=8, grid=TINY.vision.grid)
    for _ in range(20):
        truth = next(taught)
        shown = {(COLORS[c - 1], SHAPES[s - 1]) for c, s in zip(truth.patch_colors.flatten(),
                 truth.patch_shapes.flatten(), strict=True) if c}  # fmt: skip
        assert shown <= {tuple(pair) for pair in PAIRS}


def test_drawn_pictures_are_prepared_as_the_runtime_prepares_frames() -> None:
    torch.manual_seed(0)
    rgb = np.stack([picture(scene, 0.0) for scene in scenes("train", 0, 8, form="still")])
    runtime = pixels_from_rgb(rgb, image_size=TINY.preprocessing.image_size)
    taught = seen_through(torch.from_numpy(rgb), TINY.preprocessing).numpy()
    assert np.abs(taught - runtime).mean() < 0.12  # of a standard deviation: color blur, noise


class _Line(nn.Module):
    """Learns y = 2x."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(1, 1)


def _line_task(*, killed_at: int | None = None) -> Task[torch.Tensor]:
    torch.manual_seed(7)
    line, met = _Line(), [0]

    def batches_of(seed: int) -> Iterator[torch.Tensor]:
        while True:
            met[0] += 1
            if met[0] == killed_at:
                raise KeyboardInterrupt
            yield torch.randn(16, 1)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (line.map(x).float() - 2 * x).square().mean()

    return Task(line, batches_of, loss, dict)


def test_a_pretraining_that_was_killed_gives_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    schedule = Schedule(steps=25, learning_rate=0.1, round_steps=10)
    losses: list[float] = []
    whole = _line_task()
    pretrain(whole, schedule, on_step=lambda step, loss: losses.append(loss))
    assert losses[-1] < 0.3 * losses[0]
    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        pretrain(_line_task(killed_at=16), schedule, state=state)
    continued = _line_task()
    steps: list[int] = []
    pretrain(continued, schedule, state=state, on_step=lambda step, loss: steps.append(step))
    assert steps[0] == 11
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.learner.parameters(), continued.learner.parameters(), strict=True)
    )


def test_eyes_learn(tokenizers: Path) -> None:
    model = new_model(tokenizers)
    language = {name: weight.clone() for name, weight in model.language.named_parameters()}
    losses: list[float] = []
    task = sight_task(model, pictures=8)
    pretrain(task, Schedule(24, 1e-3), on_step=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    assert all(torch.equal(language[name], weight) for name, weight in model.language.named_parameters())


def test_what_a_question_gathers_is_what_the_context_token_is_made_of(tokenizers: Path) -> None:
    """`look` stops one projection short of `context_tokens`; it must not drift from it."""
    model = new_model(tokenizers).eval()
    features = torch.randn(2, 1 + TINY.vision.patches, TINY.vision.width)
    text = "What color is the star?"
    with torch.inference_mode():
        _, gathered = look(model, features, [text, text])
        ids = torch.from_numpy(model.question_tokenizer.ids(text))
        query = model.compressor.text_query(model.text_decoder(features, ids))
        context = model.compressor.context_tokens(features, query)[:, 0]
        torch.testing.assert_close(model.compressor.value_projector(gathered), context)


def test_the_language_model_learns_from_frames_that_it_imagines(tokenizers: Path) -> None:
    model = new_model(tokenizers)
    task = language_task(model, batch_size=8)
    losses: list[float] = []
    pretrain(task, Schedule(25, 2e-3), on_step=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


def test_imagined_batches_hold_answers_captions_and_a_state_for_every_prompt(tokenizers: Path) -> None:
    model = new_model(tokenizers)
    items = next(batches_of_items(model, seed=0, batch_size=16))
    for item in items:
        assert item.features is not None
        assert len(item.features) == len(item.example.prompts)
        assert item.example.learned_tokens > 0


def test_the_start_is_a_checkpoint_in_the_release_layout(tmp_path: Path) -> None:
    one = Schedule(1, 1e-3)
    checkpoint = pretrained_start(tmp_path / "start", sight=one, language=one, examined=4)
    model = load_model(checkpoint)
    assert model.config == TINY
    assert model.question_tokenizer.ids("What color is the star?").shape == (1, 8)  # each word is one piece
    features = model.encode_frames(torch.zeros(2, 3, 112, 112))
    assert model.frame_tokens(features, "What color is the star?").shape == (2, 2, TINY.language.hidden)
    with pytest.raises(UsageError, match="is there already"):
        pretrained_start(tmp_path / "start", sight=one, language=one)


def test_a_mistyped_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It was a traceback: the options were parsed outside of what catches our errors."""
    assert main(["--sight-steps", "many"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
