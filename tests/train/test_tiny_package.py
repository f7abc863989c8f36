"""What `make tiny` leaves in the package: a clip to be asked about, a checkpoint, a card made of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from llamavid.errors import LlamaVidError
from llamavid.model import load_model
from llamavid.train import tiny_card
from llamavid.train.pretraining import Schedule
from llamavid.train.tiny_package import write_release, write_sample
from llamavid.train.tiny_pretraining import pretrained_start


def test_the_sample_is_a_small_clip_with_three_questions(tmp_path: Path) -> None:
    clip = write_sample(tmp_path)
    assert clip.stat().st_size < 200_000
    with av.open(str(clip)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    asked = json.loads((tmp_path / "sample.json").read_text())
    assert len(asked) == 3
    assert all(item["question"].strip() and item["answer"].strip() for item in asked)


def test_the_release_is_the_outcome_in_float16_with_its_encoder(tmp_path: Path) -> None:
    one = Schedule(1, 1e-3)
    start = pretrained_start(tmp_path / "stage", sight=one, language=one, examined=4).parent
    release = load_model(write_release(start, tmp_path / "release"))
    (tmp_path / "stage").rename(tmp_path / "elsewhere")  # it needs nothing of it
    again = load_model(tmp_path / "release" / "checkpoint").state_dict()
    made = load_model(tmp_path / "elsewhere" / "checkpoint").state_dict()
    assert again.keys() == made.keys()
    for name, weight in release.state_dict().items():
        torch.testing.assert_close(weight, again[name], rtol=0, atol=0)
        torch.testing.assert_close(weight, made[name].half().float(), rtol=0, atol=0)


def _score(questions: int, right: int) -> dict[str, Any]:
    return {"questions": questions, "right": right, "accuracy": right / questions, "low": 0.81, "high": 0.99}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    scores = {"kinds": {"color": _score(20, 19)}, "total": _score(20, 19), "unseen_pairs": None}
    learned = {"name": "sight", "steps": 10, "seconds": 120, "loss": 0.5, "accuracy": {"color": 0.987}}
    stage = {"steps": 7, "seconds": 60, "loss": 0.25, "versions": {"torch": "2.13.0"}}
    (tmp_path / "start").mkdir()
    records = {
        "start/pretraining": {"sight": learned},
        **dict.fromkeys(("stage1", "stage2", "stage3"), stage),
        **{name: {"scores": scores} for name in ("heldout", "long", "blind")},
    }
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_the_card_holds_the_figures_of_the_records(work: Path, tmp_path: Path) -> None:
    text = tiny_card.card(work, tmp_path)
    assert "| color | 20 | 95.0% | 81.0% to 99.0% |" in text
    assert "| sight, pretraining | 10 | 2 | 0.5000 |" in text
    assert "| stage2 | 7 | 1 | 0.2500 |" in text
    assert "color 0.987" in text
    assert "torch 2.13.0" in text


def test_a_missing_record_is_named(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "blind.json").unlink()
    with pytest.raises(LlamaVidError, match=r"blind\.json cannot be read"):
        tiny_card.card(work, tmp_path)
    assert tiny_card.main([str(work), "-o", str(tmp_path)]) == 1
    assert "blind.json" in capsys.readouterr().err
    assert not (tmp_path / "MODEL_CARD.md").exists()
