"""The paper's ablations: what a variant changes, what it leaves alone, and what is said about its order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import paper_tables
from benchmarks.paper_page import TABLES, Row, guessing, publish, sentence, verdict
from llamavid.config import TextDecoder
from llamavid.model import load_model
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid
from llamavid.train.ablation import (
    Ablation,
    Token,
    ablate,
    keep_only,
    shared_data,
    stage_of,
    write_variant,
)
from llamavid.train.examples import Sample, read_samples
from llamavid.train.little_world import write_world
from llamavid.train.loop import Settings, train
from llamavid.train.stages import STAGE1, STAGE2, with_overrides
from llamavid.train.tiny_start import new_model, write_start, write_tokenizers
from llamavid.train.world_casting import scenes
from llamavid.train.world_questions import questions

BERT = Ablation(bert_layers=2)
CONTEXT_PATH = ("text_decoder.", "compressor.query", "compressor.key", "compressor.value")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned nothing."""
    folder = tmp_path_factory.mktemp("ablation") / "start"
    asked = [question for scene in scenes("train", 0, 20) for question in questions(scene)]
    write_tokenizers(folder, [f"{question.text} {question.answer}" for question in asked])
    write_start(folder, new_model(folder))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation") / "world"
    write_world(folder, "train", clips=4, stills=2)
    return folder


def features(model: LlamaVid, sample: Sample) -> Tensor:
    generator = torch.Generator().manual_seed(len(sample.name))
    return torch.randn(3, 1 + model.config.vision.patches, model.config.vision.width, generator=generator)


def learned(start: Path, world: Path, output: Path, ablation: Ablation) -> LlamaVid:
    """The model after two steps of stage 1."""
    stage = stage_of(with_overrides(STAGE1, {"batch_size": 4}), ablation)
    outcome = train(
        stage,
        open_checkpoint(start / "checkpoint"),
        [world / "captions.json"],
        Settings(output, steps=2),
        features=features,
        ablate=lambda model: ablate(model, ablation),
    )
    return load_model(outcome)


@pytest.mark.parametrize(("token", "place"), [(Token.CONTEXT, 0), (Token.CONTENT, 1)])
def test_a_frame_keeps_one_token_and_it_is_the_same_one(start: Path, token: Token, place: int) -> None:
    model = load_model(start / "checkpoint")
    shown = torch.randn(3, 1 + model.config.vision.patches, model.config.vision.width)
    both = model.frame_tokens(shown, "What color is the circle?")
    for _ in range(2):  # doing it again changes nothing
        keep_only(model, token)
        alone = model.frame_tokens(shown, "What color is the circle?")
        assert alone.shape == (3, 1, model.config.language.hidden)
        np.testing.assert_array_equal(alone[:, 0], both[:, place])
    assert isinstance(model.generate(shown, "What color is the circle?", max_new_tokens=2), list)


@pytest.mark.parametrize("token", Token)
def test_what_made_the_other_token_learns_nothing(
    start: Path, world: Path, tmp_path: Path, token: Token
) -> None:
    before = dict(load_model(start / "checkpoint").named_parameters())
    after = learned(start, world, tmp_path / "out", Ablation(only=token))
    moved = {name for name, weight in after.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert {name.startswith(CONTEXT_PATH) for name in moved} == {token is Token.CONTEXT}


def test_a_grid_is_the_same_weights_under_another_config(start: Path, tmp_path: Path) -> None:
    before = load_model(start / "checkpoint")
    after = load_model(write_variant(start, tmp_path / "variant", Ablation(pool_grid=4)))
    assert (before.config.tokens_per_frame, after.config.tokens_per_frame) == (2, 17)
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(old, new), name


def test_bert_comes_fresh_and_the_rest_of_the_start_stays(start: Path, tmp_path: Path) -> None:
    before = dict(load_model(start / "checkpoint").named_parameters())
    after = load_model(write_variant(start, tmp_path / "variant", BERT))
    assert after.config.text_decoder.kind is TextDecoder.RAW_BERT
    assert (after.config.text_decoder.layers, after.config.text_decoder.queries) == (2, 0)
    fresh = ("text_decoder.", "compressor.query_projector.")
    for name, weight in after.named_parameters():
        if not name.startswith(fresh):
            assert torch.equal(weight, before[name]), name
    words = after.text_decoder.word_embeddings.weight
    assert float(words.std()) == pytest.approx(0.02, rel=0.05)  # BERT's initializer_range
    again = load_model(write_variant(start, tmp_path / "again", BERT))
    assert torch.equal(words, again.text_decoder.word_embeddings.weight)


def test_bert_learns_in_stage_1_and_its_outcome_says_what_it_is(
    start: Path, world: Path, tmp_path: Path
) -> None:
    variant = write_variant(start, tmp_path / "variant", BERT).parent
    before = load_model(variant / "checkpoint")
    after = learned(variant, world, tmp_path / "out", BERT)
    assert after.config == before.config
    assert not torch.equal(
        after.text_decoder.layers[0].attention.query.weight,
        before.text_decoder.layers[0].attention.query.weight,
    )
    assert stage_of(STAGE2, BERT).trains == STAGE2.trains
    assert stage_of(STAGE1, Ablation()) is STAGE1


def test_conversations_are_cut_so_that_the_longest_row_can_show_them(world: Path, tmp_path: Path) -> None:
    whole = json.loads((world / "instructions.json").read_text())
    limit = max(item["seconds"] for item in whole) - 1
    captions, instructions, left_out = shared_data(world, tmp_path / "data", most_seconds=limit)
    fitting = [item for item in whole if item["seconds"] <= limit]
    parts = json.loads(instructions.read_text())
    assert left_out > 0
    assert len(parts) > len(fitting)
    for file in (captions, instructions):
        samples, broken = read_samples(file)
        assert samples
        assert not broken
    said = [turn["value"].removeprefix("<image>\n") for part in parts for turn in part["conversations"]]
    assert said == [
        turn["value"].removeprefix("<image>\n") for item in fitting for turn in item["conversations"]
    ]
    assert all(part["seconds"] * len(part["conversations"]) <= 2 * limit for part in parts)


# What is said about the order of rows.


def row(name: str, rights: Sequence[bool]) -> Row:
    records: list[dict[str, Any]] = [
        {
            "id": index,
            "kind": "color",
            "expected": "red",
            "answer": "red" if right else "blue",
            "right": right,
        }
        for index, right in enumerate(rights)
    ]
    return Row(name, 2, {"stage1": 1.0, "stage2": 1.0}, {"stage1": 1.0, "stage2": 1.0}, records)


def test_an_order_that_contradicts_the_paper_is_called_that() -> None:
    table = next(table for table in TABLES if table.number == 8)
    both, bert = row("both", [True] * 40 + [False] * 60), row("bert", [True] * 80 + [False] * 20)
    found = verdict(both, bert)
    assert found.word == "contradicts"
    assert found.difference == pytest.approx(-0.4)
    assert "our order contradicts the paper's" in sentence(table, [found])
    assert verdict(bert, both).word == "agrees"
    assert verdict(both, row("bert", [True] * 39 + [False] * 61)).word == "cannot tell"
    assert "rows are missing" in sentence(table, [])


def test_rows_that_were_asked_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different questions"):
        verdict(row("both", [True]), Row("bert", 2, {}, {}, [{"id": "other", "right": True}]))


def test_guessing_is_the_most_frequent_answer_of_each_kind() -> None:
    records = [{"kind": "count", "expected": word} for word in ("two", "two", "one")]
    assert guessing([*records, {"kind": "color", "expected": "red"}]).right == 3


def test_a_page_tells_of_rows_that_did_not_run(tmp_path: Path) -> None:
    settings = {"steps1": 1, "steps2": 1, "questions": 2, "seed": 0}
    page = publish([row("both", [True, False])], settings, tmp_path).read_text()
    assert "| 1+16 |  | not run |" in page
    assert "Table 6: it cannot be compared: rows are missing." in page
    document = json.loads((tmp_path / "paper_tables.json").read_text())
    assert document["rows"]["both"]["total"]["accuracy"] == 0.5
    assert (tmp_path / "paper_tables.png").stat().st_size > 1000


def test_the_command_keeps_what_is_done(start: Path, world: Path, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout"
    write_world(heldout, "heldout", clips=1)
    given = [str(folder) for folder in (start, world, heldout)]
    options = ["-o", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    options += ["--steps1", "1", "--steps2", "1", "--questions", "2", "--rows", "content"]
    assert paper_tables.main([*given, *options]) == 0
    outcome = tmp_path / "out" / "content" / "outcome.json"
    written = outcome.stat().st_mtime_ns
    assert paper_tables.main([*given, *options]) == 0
    assert outcome.stat().st_mtime_ns == written
    assert paper_tables.main([*given, *options, "--steps1", "2"]) == 2  # another run's rows
    assert len(json.loads(outcome.read_text())["records"]) == 2
