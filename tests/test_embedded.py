"""The model inside the package: where it is found, what is said without it, and what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamavid import embedded
from llamavid.bundle import open_bundle
from llamavid.errors import BundleError
from llamavid.model.checkpoint import open_checkpoint
from llamavid.runtime.evaluate import Settings, evaluate, is_right, scores
from llamavid.runtime.qa_layouts import read_data_set
from llamavid.runtime.session import VideoSession
from llamavid.train.little_world import write_world

SHIPPED = embedded.HOME
MOST_BYTES, MOST_CLIP_BYTES = 15_000_000, 200_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(embedded, "HOME", tmp_path)
    return tmp_path


def test_what_is_there_is_found(home: Path) -> None:
    (home / "bundle").mkdir()
    (home / "sample.mp4").touch()
    (home / "sample.json").write_text(json.dumps([{"question": "What color?", "answer": "red"}]))
    assert embedded.default_bundle() == home / "bundle"
    assert embedded.sample_clip() == home / "sample.mp4"
    assert embedded.sample_questions() == [("What color?", "red")]


def test_what_is_missing_is_named_with_what_to_do(home: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle is missing; .* Pass a BUNDLE, or run `make tiny`"):
        embedded.default_bundle()
    with pytest.raises(BundleError, match=r"sample\.mp4 is missing; .*`make tiny`"):
        embedded.sample_clip()
    with pytest.raises(BundleError, match=r"sample\.json is missing; .*`make tiny`"):
        embedded.sample_questions()


def test_the_shipped_model_is_right_about_its_sample_clip() -> None:
    with VideoSession.open(embedded.default_bundle()) as session:
        session.watch(embedded.sample_clip())
        for question, answer in embedded.sample_questions():
            assert is_right(session.ask(question, max_new_tokens=64).text, answer)


def test_what_is_shipped_is_small_and_says_what_it_is() -> None:
    bundle = open_bundle(embedded.default_bundle())
    assert sum(entry.size for entry in bundle.manifest.files.values()) <= MOST_BYTES
    assert embedded.sample_clip().stat().st_size <= MOST_CLIP_BYTES
    assert all((SHIPPED / name).stat().st_size for name in ("MODEL_CARD.md", "LICENSE"))


def test_the_shipped_model_answers_about_clips_that_nobody_has_seen(tmp_path: Path) -> None:
    """The model card has the real figures, of more questions; this is what a broken bundle would miss."""
    write_world(tmp_path / "world", "heldout", seed=1234, clips=20)
    questions = read_data_set(tmp_path / "world" / "questions.json")
    with VideoSession.open(embedded.default_bundle()) as session:
        outcome = evaluate(session, questions, Settings())
        blind = evaluate(session, questions, Settings(blind=True))
    assert len(outcome.records) > 80
    assert scores(outcome.records).total.accuracy > 0.8
    assert scores(blind.records).total.accuracy < 0.5


def test_the_shipped_checkpoint_is_what_the_bundle_was_made_of() -> None:
    manifest = open_bundle(embedded.default_bundle()).manifest
    opened = open_checkpoint(SHIPPED / "release" / "checkpoint")
    assert opened.config == manifest.model
