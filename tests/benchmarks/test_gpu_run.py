"""A whole run of `make bench-gpu` on the CPU, at tiny dimensions: every step, its figures and its errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import attention, frames, headline, language_times, rewrites, timing
from benchmarks.gpu import ceiling as ceilings
from benchmarks.gpu.dimensions import SIZES
from benchmarks.gpu.fast_decoder import Image
from benchmarks.gpu.frames import measured_row
from benchmarks.gpu.random_model import random_frames
from benchmarks.gpu.report import Report
from benchmarks.gpu.run import Plan, run
from benchmarks.gpu.truth import Truth, truth_of
from benchmarks.gpu.variants import COMPILED_VARIANTS, LAST_VARIANTS, VARIANTS, Choices, Variant, stages

CPU = torch.device("cpu")
FRAMES = 2
ROUNDS = {attention: "_ROUNDS", rewrites: "_ROUNDS", headline: "_ROUNDS", language_times: "_ROUNDS"}
ROUNDS |= {ceilings: "_ROUNDS", frames: "ROUNDS"}


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times mean nothing here."""
    for module, name in ROUNDS.items():
        monkeypatch.setattr(module, name, 2)
    monkeypatch.setattr(timing, "ROUND_MS", 0.0)
    monkeypatch.setattr(timing, "WARM_UP", 1)


@pytest.fixture
def finished(few_rounds: None, tmp_path: Path) -> dict[str, Any]:
    report = Report(tmp_path / "gpu_cpu.json", {"GPU": "a CPU"}, {}, seconds=600)
    plan = dataclasses.replace(Plan.tiny("tiny", compiles=False), batches=(FRAMES, 1), contexts=(20,))
    run(report, plan, CPU)
    assert not report.failed
    assert not report.has_void
    document: dict[str, Any] = json.loads(report.file.read_text())
    return document


def test_a_run_measures_both_sides_and_everything_has_its_error(finished: dict[str, Any]) -> None:
    rows = {(row["variant"], row["batch"]): row for row in finished["rows"]}
    variants = ("published, eager", "ours, eager")
    assert set(rows) == {(name, batch) for name in variants for batch in (FRAMES, 1)}
    for row in rows.values():
        assert set(row["errors"]) == set(row["ms_a_frame"])
        assert 0 < row["errors"]["whole"] < 0.01
    groups = {value["group"] for value in finished["values"]}
    assert len(groups) == 6  # ceilings, attention, rewrites, both sides, the language model, an hour
    compared = [value for value in finished["values"] if value["errors"]]
    assert len(compared) == len(finished["values"]) - 4  # the four ceilings are no results
    skipped = {each["what"]: each["why"] for each in finished["skipped"]}
    assert skipped["ours, CUDA graphs"] == "no CUDA graphs here"
    assert finished["settings"]["image of ours"] in {image.value for image in Image}


@pytest.fixture(scope="module", params=["tiny", "tiny-bert"])
def truth(request: pytest.FixtureRequest) -> tuple[Any, Truth]:
    networks = random_frames(SIZES[request.param], CPU)
    return networks, truth_of(networks, SIZES[request.param], FRAMES, CPU)


def _kinds() -> list[Variant]:
    """All but compiling, which `test_gpu_frames` does, and the graph itself, which only CUDA has."""
    plain = [
        dataclasses.replace(each, name=each.precision, compiled=False, graphed=False)
        for each in (*VARIANTS, *COMPILED_VARIANTS, *LAST_VARIANTS)
    ]
    return list(dict.fromkeys(plain))


@pytest.mark.parametrize("variant", _kinds(), ids=lambda kind: f"{kind.name}, {kind.ours}")
@torch.inference_mode()
def test_every_variant_is_within_its_bound(
    few_rounds: None, truth: tuple[Any, Truth], variant: Variant
) -> None:
    networks, expected = truth
    for image in (Image.ABSORBED, Image.KEPT):
        made = stages(
            variant,
            networks.to(variant.dtype),
            expected.ids,
            expected.watched_pixels,
            Choices(96 if variant.ours else None, image),
        )
        row = measured_row(variant, made, expected, FRAMES)
        assert row.void == ""
        assert ("kept" in row.columns) == (variant.ours and image is Image.KEPT)
        assert row.columns["encoder"].median > 0
