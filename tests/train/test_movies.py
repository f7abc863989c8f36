"""Movies in training: stored features and subtitles, in the form of the prompt that asks about them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from llamavid.errors import SourceError, UsageError
from llamavid.feature_file import StoredFeatures, write_features
from llamavid.model import load_model
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.prompt import SLOT, Turn, movie
from llamavid.tokenizer import SLOT_ID
from llamavid.train.examples import IGNORED, Example, Media, Sample, example, read_samples
from llamavid.train.features import FrameFeatures
from llamavid.train.forward import Item, Loss
from llamavid.train.loop import Progress, Settings, train
from llamavid.train.stages import STAGE1, STAGE3, Dialogue, with_overrides
from tests.conftest import golden_checkpoint

SAID = ("Who is there?", "", "It is me.")
FIRST, LATER = Turn("Who is it?", "a rabbit"), Turn("And then?", "it runs")


@pytest.fixture(scope="module")
def model() -> LlamaVid:
    return model_from_checkpoint(golden_checkpoint("short-video"))


def stored(model: LlamaVid, *, width: int | None = None) -> StoredFeatures:
    chance = np.random.default_rng(0)
    frames = chance.standard_normal((len(SAID), 256, width or model.config.vision.width)).astype(np.float16)
    times = tuple(range(len(SAID)))
    return StoredFeatures(frames, False, "", times, tuple(map(float, times)), SAID)


def written(folder: Path, features: StoredFeatures, *, answer: str = "a rabbit") -> Path:
    write_features(folder / "movie.safetensors", features)
    said = [{"from": "human", "value": "<image>\nWho is it?"}, {"from": "gpt", "value": answer}]
    items = [{"id": "m", "video": "movie.safetensors", "conversations": said}]
    (folder / "movies.json").write_text(json.dumps(items))
    return folder / "movies.json"


def made(model: LlamaVid, *turns: Turn, max_tokens: int = 999) -> Example:
    sample = Sample("m", Media.MOVIE, Path("m.safetensors"), turns, SAID)
    return example(
        sample,
        Dialogue.VICUNA,
        model.language_tokenizer,
        max_tokens=max_tokens,
        tokens_per_frame=2,
        chance=random.Random(0),
    )


def no_pixels(path: Path) -> npt.NDArray[np.float32]:
    raise AssertionError(f"{path} needs no encoder")


def test_a_movie_is_learned_as_it_is_asked_about(model: LlamaVid) -> None:
    one = made(model, FIRST, LATER)
    asked = model.language_tokenizer.ids(movie(FIRST.question, SAID, tokens_per_frame=2, template="imgsp_v1"))
    assert (one.ids[: len(asked)] == asked).all()
    assert (one.ids == SLOT_ID).sum() == 2 * len(SAID)
    assert one.prompts == (FIRST.question,)
    learned = one.ids[one.labels != IGNORED].tolist()
    assert model.language_tokenizer.text(learned).split() == ["a", "rabbit", "it", "runs"]
    assert learned.count(model.language_tokenizer.eos_id) == 2


def test_the_loss_of_a_movie_is_that_of_its_prompt(model: LlamaVid) -> None:
    one, features = made(model, FIRST), torch.from_numpy(stored(model).features)
    with torch.inference_mode():
        rows = model.frame_tokens(features, FIRST.question).flatten(0, 1)[:, None]
        parts = movie(FIRST.question, SAID, tokens_per_frame=2, template="imgsp_v1")
        assert parts.count(SLOT) == len(rows)
        answer = torch.from_numpy(one.labels[one.labels != IGNORED])
        spoken = model.language.model.embed_tokens(answer[:-1])[None]
        sequence = torch.cat([model.sequence(parts, rows), spoken], 1)
        logits = model.language(inputs_embeds=sequence).logits[0, -len(answer) :]
        by_hand = -logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()
        torch.testing.assert_close(Loss(model)([Item(one, features)]), by_hand)


def test_stage_3_learns_from_a_movie_without_the_encoder(model: LlamaVid, tmp_path: Path) -> None:
    stage = with_overrides(STAGE3, {"epochs": 4.0, "learning_rate": 1e-3, "follows": None})
    curve: list[Progress] = []
    outcome = train(
        stage,
        golden_checkpoint("short-video"),
        [written(tmp_path, stored(model))],
        Settings(tmp_path / "out"),
        features=FrameFeatures(tmp_path / "cache", no_pixels),
        on_step=curve.append,
    )
    assert curve[-1].loss < curve[0].loss
    assert load_model(outcome).config.language.context_length == 65536
    assert not list((tmp_path / "cache").iterdir())


def test_a_movie_that_does_not_fit_is_broken_before_the_run(model: LlamaVid, tmp_path: Path) -> None:
    tokens = len(made(model, FIRST).ids)
    assert made(model, FIRST, max_tokens=tokens)
    with pytest.raises(ValueError, match=f"its sequence has {tokens} tokens, more than {tokens - 1}"):
        made(model, FIRST, max_tokens=tokens - 1)
    stage = with_overrides(STAGE3, {"max_tokens": 100, "follows": None})
    with pytest.raises(UsageError, match=r"such as 'm': its sequence has \d+ tokens, more than 100"):
        train(
            stage,
            golden_checkpoint("short-video"),
            [written(tmp_path, stored(model))],
            Settings(tmp_path / "out"),
            features=FrameFeatures(tmp_path / "cache", no_pixels),
        )


@pytest.mark.parametrize("damage", [b"", b"no features at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_without_stored_features_is_a_broken_sample(
    damage: bytes, model: LlamaVid, tmp_path: Path
) -> None:
    data = written(tmp_path, stored(model))
    (tmp_path / "movie.safetensors").write_bytes(damage)
    samples, broken = read_samples(data)
    assert not samples
    assert "movie.safetensors holds no stored features" in broken[0].reason


def test_features_that_are_damaged_or_another_encoder_s_are_a_broken_sample(
    model: LlamaVid, tmp_path: Path
) -> None:
    read = FrameFeatures(tmp_path / "cache", no_pixels)
    sample = replace(made(model, FIRST).sample, path=tmp_path / "movie.safetensors")
    written(tmp_path, stored(model, width=64))
    with pytest.raises(SourceError, match="has features of 256 x 64 a frame"):
        read(model, sample)
    written(tmp_path, stored(model))
    with (tmp_path / "movie.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(np.float16(np.nan).tobytes())
    with pytest.raises(SourceError, match="a feature that is not finite"):
        read(model, sample)


def test_stage_1_takes_a_movie_in_its_movie_form(model: LlamaVid, tmp_path: Path) -> None:
    stage = with_overrides(STAGE1, {"batch_size": 1})
    outcome = train(
        stage,
        golden_checkpoint("short-video"),
        [written(tmp_path, stored(model))],
        Settings(tmp_path / "out"),
        features=FrameFeatures(tmp_path / "cache", no_pixels),
    )
    assert outcome.is_dir()
