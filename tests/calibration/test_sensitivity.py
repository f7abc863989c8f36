"""Many variants in one pass over the weights: each costs what it costs in the plain model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llamavid.calibration.branch_state import BranchState
from llamavid.calibration.modules import graph_modules
from llamavid.calibration.outputs import ModuleError, Output
from llamavid.calibration.sensitivity import combined_errors, sensitivity
from llamavid.calibration.variant_errors import Error, variant_errors
from llamavid.errors import CheckpointError, UsageError
from tests.calibration.naive import (
    FRAGILE,
    INT8,
    Given,
    all_rounded,
    fragile_checkpoint,
    given,
    golden,
    outputs,
)

FP8 = dict.fromkeys(INT8, "fp8")


def plain_errors(
    found: Given, chosen: dict[str, set[str]], exact: tuple[Tensor, Tensor] | None = None
) -> list[float]:
    """Of the frame tokens and of the logits, by the model in one piece."""
    exact = exact or outputs(found.model, found.sample)
    with all_rounded(found, chosen):
        rounded = outputs(found.model, found.sample)
    return [relative(b, a) for a, b in zip(exact, rounded, strict=True)]


def relative(found: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact))


@pytest.mark.parametrize("formats", [INT8, FP8], ids=["int8 and int4", "fp8"])
def test_each_module_alone_costs_what_it_costs_in_the_plain_model(formats: dict[str, str]) -> None:
    found = golden(tuple(formats.items()))
    errors = sensitivity(found.checkpoint, found.calibration, found.sample)
    modules = graph_modules(found.checkpoint.config)
    names = [(graph, name) for graph in modules for name in modules[graph]]
    assert [(one.graph, one.module) for one in errors] == names
    exact = outputs(found.model, found.sample)
    for one in errors:
        expected = plain_errors(found, {one.graph: {one.module}}, exact)[one.graph == "llm"]
        # A sum in another order, float32, puts a few activations on the other side of a half.
        assert one.error == pytest.approx(expected, rel=0.05, abs=2e-6), one


def test_what_nobody_reads_costs_nothing() -> None:
    """The last layer's text rows leave the text decoder by no door."""
    found = golden()
    last = found.checkpoint.config.text_decoder.layers - 1
    errors = {one.module: one for one in sensitivity(found.checkpoint, found.calibration, found.sample)}
    assert errors[f"text_decoder.layers.{last}.feed_forward.up"].error == 0
    assert errors[f"text_decoder.layers.{last - 1}.feed_forward.up"].error > 0


def test_together_modules_cost_what_they_cost_in_the_plain_model() -> None:
    found = golden()
    chosen = {
        "vision": {"blocks.1.attn.qkv"},
        "context": {"compressor.key_projector"},
        "content": {"content_projector.2"},
        "llm": {"model.layers.1.mlp.up_proj", "lm_head"},
    }
    together = combined_errors(found.checkpoint, found.calibration, found.sample, chosen)
    expected = plain_errors(found, chosen)
    assert together[Output.FRAME_TOKENS] == pytest.approx(expected[0], rel=0.02)
    assert together[Output.LOGITS] == pytest.approx(expected[1], rel=0.02)


def test_an_output_of_which_nothing_is_rounded_has_no_error_and_is_not_run() -> None:
    found, ran = golden(), set[str]()
    chosen = {"vision": set[str](), "llm": {"lm_head"}}

    def on_progress(what: str, done: int, total: int, note: str) -> None:
        ran.add(what)

    errors = combined_errors(
        found.checkpoint, found.calibration, found.sample, chosen, on_progress=on_progress
    )
    assert errors[Output.FRAME_TOKENS] == 0 < errors[Output.LOGITS]
    assert ran == {"together: language model", "together: logits"}


def test_without_prompts_the_language_model_is_left_out() -> None:
    found = golden()
    mute = found.sample._replace(sequences=())
    assert "llm" not in {one.graph for one in sensitivity(found.checkpoint, found.calibration, mute)}
    assert combined_errors(found.checkpoint, found.calibration, mute, {"llm": {"lm_head"}}) == {}


def test_a_fragile_module_is_the_most_sensitive(tmp_path: Path) -> None:
    found = given(fragile_checkpoint(tmp_path))
    errors = sensitivity(found.checkpoint, found.calibration, found.sample)
    worst = max((one for one in errors if one.graph == "vision"), key=lambda one: one.error)
    assert worst.module == FRAGILE


def test_the_divergence_grows_with_the_error_of_the_logits() -> None:
    found = golden()
    errors = sensitivity(found.checkpoint, found.calibration, found.sample)
    assert all((one.divergence is not None) == (one.graph == "llm") for one in errors)
    nats = [one.divergence for one in sorted(errors, key=lambda one: one.error) if one.divergence is not None]
    assert 0 < nats[0] < nats[-1]


def test_an_interrupted_run_goes_on_where_it_was_and_finds_the_same(tmp_path: Path) -> None:
    found = golden()
    chosen = [{"vision": {name}} for name in found.calibration.scales.graphs["vision"].steps]
    seen: list[tuple[str, int, int]] = []

    def run(state: BranchState | None, *, until: int | None = None) -> list[Error]:
        def on_progress(what: str, done: int, total: int, note: str) -> None:
            seen.append((what, done, total))
            if done == until and what.endswith("vision"):
                raise KeyboardInterrupt

        return variant_errors(
            Output.FRAME_TOKENS,
            found.checkpoint,
            found.calibration,
            found.sample,
            chosen,
            what="alone",
            on_progress=on_progress,
            state=state,
        )

    whole = run(None)
    total = seen[0][2]
    assert [done for what, done, _ in seen if what == "alone: vision"][-1] == total
    state = BranchState(tmp_path / "branches.npz", "key", every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run(state, until=total - 3)
    seen.clear()
    assert run(state) == whole
    assert 0 < seen[0][1] < total - 3
    other = BranchState(tmp_path / "branches.npz", "another key", every_seconds=0)
    seen.clear()
    assert run(other) == whole
    assert seen[0][1] == 0


def test_damaged_state_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "branches.npz"
    for damage in (b"", b"PK\x03\x04 no archive", b"\x80\x04K\x01."):
        file.write_bytes(damage)
        assert BranchState(file, "key").load() is None


def test_a_finished_run_is_not_run_again_unless_its_inputs_changed(tmp_path: Path) -> None:
    found = golden()
    seen: list[str] = []

    def measured(sample_frames: int) -> tuple[ModuleError, ...]:
        sample = found.sample._replace(pixels=found.sample.pixels[:sample_frames])
        return sensitivity(
            found.checkpoint,
            found.calibration,
            sample,
            folder=tmp_path,
            on_progress=lambda what, done, total, note: seen.append(what),
        )

    first = measured(2)
    assert sorted(file.name for file in (tmp_path / "sensitivity").iterdir()) == [
        "frame_tokens.json",
        "logits.json",
    ]
    seen.clear()
    assert measured(2) == first
    assert not seen
    assert measured(1) != first
    assert seen


def test_a_module_that_has_no_scale_is_left_out() -> None:
    found = golden()
    scales = found.calibration.scales
    vision = scales.graphs["vision"]
    first = next(iter(vision.steps))
    steps = {name: step for name, step in vision.steps.items() if name != first}
    graphs = {**scales.graphs, "vision": replace(vision, steps=steps, kept=(first,))}
    calibration = replace(found.calibration, scales=replace(scales, graphs=graphs))
    errors = sensitivity(found.checkpoint, calibration, found.sample)
    assert first not in {one.module for one in errors}


def test_frames_that_are_no_numbers_are_said() -> None:
    found = golden()
    broken = found.sample._replace(pixels=torch.full_like(found.sample.pixels, torch.nan))
    with pytest.raises(CheckpointError, match="the norm of the exact frame tokens is nan"):
        sensitivity(found.checkpoint, found.calibration, broken)


def test_a_sample_without_frames_is_refused() -> None:
    found = golden()
    with pytest.raises(UsageError, match="0 frames and 2 questions"):
        sensitivity(
            found.checkpoint, found.calibration, found.sample._replace(pixels=found.sample.pixels[:0])
        )
