"""scales.json is untrusted: what cannot be a scale, or is another checkpoint's, is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamavid.calibrated import Calibration, save_calibration
from llamavid.errors import ScalesError
from llamavid.scales import FORMAT_VERSION, GraphScales, Scales, Step, load_scales

CHECKPOINT, OTHER = "ab" * 32, "cd" * 32
SCALES = Scales(
    FORMAT_VERSION,
    "absolute maximum",
    CHECKPOINT,
    OTHER,
    12,
    "",
    {"vision": GraphScales("int8", {"blocks.0.mlp.fc1": Step(12.7, 0.1)}, ("blocks.0.attn.qkv",))},
)


def changed(file: Path, change: Callable[[Any], object]) -> Path:
    """The sound file with a change of its document."""
    document = json.loads(SCALES.to_json())
    change(document)
    file.write_text(json.dumps(document))
    return file


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    save_calibration(Calibration(SCALES, {}), tmp_path / "scales.json")
    assert load_scales(tmp_path / "scales.json") == SCALES
    assert [file.name for file in tmp_path.iterdir()] == ["scales.json"]


def _step(document: Any) -> Any:
    return document["graphs"]["vision"]["steps"]["blocks.0.mlp.fc1"]


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 1e400, 1e-40, 1e39])  # some: no float32
@pytest.mark.parametrize("field", ["scale", "largest"])
def test_a_scale_that_cannot_be_is_named(tmp_path: Path, field: str, value: float) -> None:
    file = changed(tmp_path / "scales.json", lambda document: _step(document).update({field: value}))
    with pytest.raises(ScalesError, match=rf"vision: {field} of blocks\.0\.mlp\.fc1 is .*above 0"):
        load_scales(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("observer"), "'observer'"),
        (lambda d: d.update(surprise=1), "'surprise'"),
        (lambda d: d.update(checkpoint="7b"), "checkpoint is '7b', not a sha256"),
        (lambda d: d.update(frames=0), "frames is 0"),
        (lambda d: _step(d).update(scale="0.1"), "'0.1'"),
        (lambda d: d.update(format_version=99), "format 99; expected 2. Upgrade"),
        (lambda d: d.update(graphs=[]), "graphs is not an object"),
        (lambda d: d["graphs"]["vision"].update(format="int3"), "vision: format is 'int3'"),
        (lambda d: d["graphs"]["vision"].update(format="int4"), "block is None with format int4"),
        (lambda d: d["graphs"]["vision"].update(kept=["blocks.0.mlp.fc1"]), "has a step and is kept"),
        (lambda d: _step(d).update(scale=_step(d)["scale"] * 2), "scale of blocks.0.mlp.fc1 is"),
        (lambda d: d["graphs"]["vision"].update(format="int4", block=32), "int4 has steps of activations"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(
    tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    with pytest.raises(ScalesError) as caught:
        load_scales(changed(tmp_path / "scales.json", change))
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"format_version": {}}'])
def test_what_is_no_scales_file_at_all_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scales.json").write_text(text)
    with pytest.raises(ScalesError, match="calibrate"):
        load_scales(tmp_path / "scales.json")


def test_a_missing_and_an_enormous_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScalesError, match="No such file"):
        load_scales(tmp_path / "scales.json")
    with (tmp_path / "scales.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ScalesError, match="at most"):
        load_scales(tmp_path / "scales.json")


def test_scales_of_another_checkpoint_or_format_are_refused() -> None:
    SCALES.require(checkpoint=CHECKPOINT)
    with pytest.raises(ScalesError, match=r"checkpoint abababababab.*; expected cdcdcdcdcdcd"):
        SCALES.require(checkpoint=OTHER)
    SCALES.require_format("vision", "int8")
    with pytest.raises(ScalesError, match="have int8 for graph vision; expected fp8"):
        SCALES.require_format("vision", "fp8")
    with pytest.raises(ScalesError, match="have nothing for graph llm; expected int4 in blocks of 32"):
        SCALES.require_format("llm", "int4", block=32)
