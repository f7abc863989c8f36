"""The whole of it: files that are the same every time, and that export takes."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamavid.bundle import open_bundle
from llamavid.calibrated import load_calibration
from llamavid.calibration.calibrate import Calibrated, calibrate
from llamavid.calibration.material import Material
from llamavid.calibration.observers import Observer
from llamavid.calibration.options import CalibrationOptions
from llamavid.contract import DType
from llamavid.errors import ScalesError, UsageError
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.golden import read_golden
from llamavid.model.checkpoint import Checkpoint
from llamavid.runtime.parity import onnx_subject
from llamavid.runtime.verify import compare
from tests.calibration.small import small_checkpoint, small_material
from tests.conftest import RUNNER

OPTIONS = CalibrationOptions("int8", "int4")
RESULTS = ("scales.json", "scales.npz", "plan.json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_checkpoint(tmp_path_factory.mktemp("small") / "release")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibrated") / "out"


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint, folder: Path) -> Calibrated:
    return calibrate(checkpoint, small_material(), folder, OPTIONS)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def test_the_same_clips_give_the_same_bytes_interrupted_or_not(
    checkpoint: Checkpoint, made: Calibrated, folder: Path, tmp_path: Path
) -> None:
    calls = 0

    def stop_somewhere(what: str, done: int, total: int, note: str) -> None:
        nonlocal calls
        calls += 1
        if calls in (5, 20):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            calibrate(checkpoint, small_material(), tmp_path, OPTIONS, on_progress=stop_somewhere)
        assert not any((tmp_path / name).exists() for name in RESULTS)
    calibrate(checkpoint, small_material(), tmp_path, OPTIONS, on_progress=stop_somewhere)
    assert results(tmp_path) == results(folder)


def test_what_is_written_is_what_was_decided(made: Calibrated, folder: Path) -> None:
    read = load_calibration(folder / "scales.json")
    assert read.scales == made.calibration.scales
    assert read.vectors.keys() == made.calibration.vectors.keys()
    vision, llm = read.scales.graphs["vision"], read.scales.graphs["llm"]
    assert vision.steps.keys() == made.collected.graphs["vision"].observed.keys()
    assert (llm.steps, llm.block) == ({}, 128)
    importance = read.graph("llm").importance("model.layers.0.self_attn.k_proj")  # type: ignore[union-attr]
    observed = made.collected.graphs["llm"].observed["model.layers.0.self_attn.k_proj"]
    np.testing.assert_array_equal(importance, observed.importance)


def test_export_takes_the_scales(
    checkpoint: Checkpoint, made: Calibrated, folder: Path, tmp_path: Path
) -> None:
    export_bundle(
        checkpoint,
        tmp_path / "bundle",
        runner=RUNNER,
        options=ExportOptions("int8", llm_precision="int4", int4_block=128, scales=folder / "scales.json"),
    )
    assert (tmp_path / "bundle" / "scales.json").read_bytes() == (folder / "scales.json").read_bytes()


def test_export_takes_the_ranges_of_keys_and_values(
    checkpoint: Checkpoint, made: Calibrated, folder: Path, tmp_path: Path
) -> None:
    """Apart: keys are many times as large in LLaMA, and a value rounded to their step would be lost."""
    found = made.calibration.scales.graphs["llm"]
    for name, largest in (found.cache | found.migrated_cache).items():
        assert largest == max(found.keys[name], found.values[name])
    scales = folder / "scales.json"
    options = ExportOptions(llm_precision="int4", int4_block=128, kv_cache="int8", scales=scales)
    export_bundle(checkpoint, tmp_path / "bundle", runner=RUNNER, options=options)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.graphs["llm"].contract.spec("past.0.value").dtype is DType.INT8
    rows = [one.row for one in compare(read_golden(bundle), onnx_subject(bundle)) if one.stage == "llm"]
    assert rows
    assert all(row.passed for row in rows)
    assert all(row.norm_error < 0.05 for row in bundle.manifest.parity if "rounded to int4" in row.against)


def test_raw_bert_with_grouped_keys_and_one_projection_is_calibrated_and_exported(tmp_path: Path) -> None:
    other: dict[str, Any] = {"bert_type": "raw_bert_layer:2", "kv_heads": 2, "mm_projector_type": "linear"}
    checkpoint = small_checkpoint(tmp_path / "release", **other)
    first = small_material().clips[0]
    calibrate(checkpoint, Material((first,)), tmp_path / "c", OPTIONS)
    scales = tmp_path / "c" / "scales.json"
    options = ExportOptions("int8", llm_precision="int4", int4_block=128, scales=scales)
    manifest = export_bundle(checkpoint, tmp_path / "bundle", runner=RUNNER, options=options)
    assert all(row.passed for row in manifest.parity)


def test_an_edited_plan_is_followed_when_passed_and_never_written_over(
    checkpoint: Checkpoint, made: Calibrated, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)  # what was watched and measured is not again
    plan = tmp_path / "plan.json"
    document = json.loads(plan.read_text())
    document["graphs"]["vision"]["modules"]["blocks.1.mlp.fc2"]["format"] = "keep"
    plan.write_text(json.dumps(document))
    with pytest.raises(ScalesError, match=r"plan\.json is another plan .* --plan .*plan\.json to follow it"):
        calibrate(checkpoint, small_material(), tmp_path, OPTIONS)
    assert json.loads(plan.read_text()) == document
    followed = calibrate(checkpoint, small_material(), tmp_path, replace(OPTIONS, plan=plan))
    vision = followed.calibration.scales.graphs["vision"]
    assert vision.kept == ("blocks.1.mlp.fc2",)
    assert "blocks.1.mlp.fc2" not in vision.steps
    assert followed.plan.measured["frame_tokens"] < made.plan.measured["frame_tokens"] * 1.05
    again = calibrate(checkpoint, small_material(), tmp_path, OPTIONS, replace=True)
    assert again.calibration.scales == made.calibration.scales


def test_a_mistake_in_a_plan_is_told_before_anything_is_watched(
    checkpoint: Checkpoint, made: Calibrated, folder: Path, tmp_path: Path
) -> None:
    """It was read after the model had been watched: an hour later, of a large one."""
    text = (folder / "plan.json").read_text()
    (tmp_path / "mine.json").write_text(text.replace('"format": "int8", "error"', '"format": "in8", "error"'))
    options = replace(OPTIONS, plan=tmp_path / "mine.json")
    with pytest.raises(ScalesError, match=r"blocks\.0\.attn\.qkv has format 'in8'; expected int8 or keep"):
        calibrate(checkpoint, small_material(), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_scales_of_unknown_origin_are_not_written_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Copied there without the state of their run, they were replaced without a word."""
    (tmp_path / "scales.json").write_text("of another model")
    frames = CalibrationOptions("int8", "none", migrate=False)
    with pytest.raises(ScalesError, match=r"scales\.json exists, and no observed/run\.json .* --replace"):
        calibrate(checkpoint, small_material(), tmp_path, frames)
    assert [file.name for file in tmp_path.iterdir()] == ["scales.json"]
    calibrate(checkpoint, small_material(), tmp_path, frames, replace=True)
    assert load_calibration(tmp_path / "scales.json").scales.graphs.keys() == {"vision", "content", "context"}


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"frame_budget": math.nan}, "frame budget nan; expected a relative error above 0"),
        ({"llm_budget": math.inf}, "llm budget inf"),
        ({"llm_budget": 0.1, "llm_format": "none"}, "llm budget 0.1 with format none"),
        ({"frame_budget": 0.1, "plan": Path("p.json")}, r"frame budget 0.1 beside p\.json; expected one of"),
    ],
)  # fmt: skip
def test_a_budget_that_decides_nothing_is_told_at_once(choices: dict[str, Any], said: str) -> None:
    """It was told after all had been watched and measured; beside a plan, never."""
    with pytest.raises(UsageError, match=said):
        CalibrationOptions(**choices)


def test_another_observer_watches_nothing_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    frames = CalibrationOptions("int8", "none", migrate=False)
    first = calibrate(checkpoint, small_material(), tmp_path, frames)
    watched: list[int] = []

    def count(what: str, done: int, total: int, note: str) -> None:
        watched.extend([done] if what == "watch" and done < total else [])

    other = replace(frames, observer=Observer.ABSOLUTE_MAXIMUM)
    second = calibrate(checkpoint, small_material(), tmp_path, other, replace=True, on_progress=count)
    assert watched == []
    one, another = (
        found.calibration.scales.graphs["vision"].steps["blocks.0.mlp.fc2"] for found in (first, second)
    )
    assert one.largest < another.largest
