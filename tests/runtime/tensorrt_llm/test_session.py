"""A video session with a TensorRT-LLM Vicuna says what it says without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamavid.errors import UsageError
from llamavid.export.to_trtllm import export_trtllm
from llamavid.export.trtllm_options import TrtllmOptions
from llamavid.runtime.session import VideoSession
from llamavid.runtime.tensorrt_llm.vicuna import open_vicuna
from tests.clips import write_clip
from tests.conftest import golden_checkpoint
from tests.runtime.tensorrt_llm import stand_in


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in.install(monkeypatch, tmp_path / "site")
    checkpoint = golden_checkpoint("short-video")
    export_trtllm(checkpoint, tmp_path / "vicuna", options=TrtllmOptions(dtype="float32"))
    return stand_in.build(tmp_path / "vicuna", tmp_path / "engine")


def test_a_watched_clip_is_answered_alike(short_bundle: Path, engine: Path, tmp_path: Path) -> None:
    clip, told = write_clip(tmp_path / "clip.mp4", frames=80), list[str]()
    with VideoSession.open(short_bundle) as session:
        session.watch(clip)
        expected = session.ask("What happens?", max_new_tokens=12)
        movie = session.ask_movie("What happens?", [""] * len(expected.frames), max_new_tokens=12)
    with open_vicuna(engine) as vicuna, VideoSession.open(short_bundle, vicuna=vicuna) as session:
        session.watch(clip)
        answer = session.ask("What happens?", max_new_tokens=12, on_text=told.append)
        movie_answer = session.ask_movie("What happens?", [""] * len(answer.frames), max_new_tokens=12)
    assert (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
    assert (answer.prompt_tokens, answer.finish_reason) == (expected.prompt_tokens, expected.finish_reason)
    assert (movie_answer.token_ids, movie_answer.prompt_tokens) == (movie.token_ids, movie.prompt_tokens)
    assert "".join(told).strip() == answer.text
    assert "decode" in answer.timings_ms


def test_a_vicuna_of_another_checkpoint_is_refused(long_bundle: Path, engine: Path) -> None:
    """Same sizes, but its positions are not divided by 16: it would answer, and nonsense."""
    with open_vicuna(engine) as vicuna, pytest.raises(UsageError, match="both made from one checkpoint"):
        VideoSession.open(long_bundle, vicuna=vicuna)
