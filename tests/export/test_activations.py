"""The scan: what real frames reach in each layer, and what an export makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from llamavid.bundle import open_bundle
from llamavid.calibrated import Calibration, save_calibration
from llamavid.cli import main
from llamavid.errors import CheckpointError, ScalesError, UsageError
from llamavid.export.activations import FILE, FLOAT16_END, Activations, rows, scales_from, table
from llamavid.export.frame_types import FrameTypes, frame_types, write_frame_graphs
from llamavid.export.pack import SCALES_FILE, ExportOptions, export_bundle
from llamavid.export.precision import FP8, FP32, INT8
from llamavid.export.rewrites import NONE
from llamavid.export.scan import scan_activations
from llamavid.export.verify import sample_pixels
from llamavid.formats.eight_bits import EightBits
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.fingerprint import fingerprint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.model.streamed import streamed_features
from llamavid.scales import load_scales
from tests.clips import write_clip
from tests.conftest import GOLDEN, RUNNER, golden_checkpoint


@pytest.fixture(scope="module", params=["qformer_pretrain", "raw_bert_layer:2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("random") / "release"
    write_random_checkpoint(folder, replace(TINY, bert_type=request.param), seed=5)
    return open_checkpoint(folder / "checkpoint")


@pytest.fixture(scope="module")
def seen(checkpoint: Checkpoint) -> Activations:
    return scan_activations(checkpoint, sample_pixels(checkpoint.config))


def products(file: Path) -> Iterator[str]:
    """Modules whose weight a graph multiplies with."""
    graph = onnx.load(str(file), load_external_data=False).graph
    weights = {weight.name for weight in graph.initializer}
    for node in graph.node:
        if node.op_type in ("MatMul", "Conv") and node.input[1] in weights:
            yield node.input[1].removesuffix(".weight")


def test_every_product_of_every_graph_is_seen_by_its_name(
    checkpoint: Checkpoint, seen: Activations, tmp_path: Path
) -> None:
    """One that the scan did not see would have no scale, and one under another name a wrong type."""
    write_frame_graphs(checkpoint, tmp_path, FrameTypes(FP32, rewrites=NONE))
    for graph, values in seen.graphs.items():
        assert values.inputs.keys() == values.outputs.keys() == set(products(tmp_path / f"{graph}.onnx"))
        assert values.scores.keys() == values.operands.keys()


def test_figures_are_the_largest_magnitudes_of_the_reference(
    checkpoint: Checkpoint, seen: Activations
) -> None:
    features = streamed_features(checkpoint, torch.from_numpy(sample_pixels(checkpoint.config)))
    vision, content = seen.graphs["vision"], seen.graphs["content"]
    assert vision.sums["blocks.2.mlp"] == pytest.approx(float(features.abs().max()))
    assert vision.inputs["patch_embed.proj"] == pytest.approx(
        float(np.abs(sample_pixels(checkpoint.config)).max())
    )
    mean = features[:, 1:].mean(dim=1)
    assert content.inputs["content_projector.0"] == pytest.approx(float(mean.abs().max()), rel=1e-5)
    weight, bias = (checkpoint.read(f"compressor.content_projector.0.{leaf}") for leaf in ("weight", "bias"))
    expected = (mean @ weight.T + bias).abs().max()
    assert content.outputs["content_projector.0"] == pytest.approx(float(expected), rel=1e-5)


def test_scores_are_those_before_the_softmax(checkpoint: Checkpoint, seen: Activations) -> None:
    rows_in = streamed_features(checkpoint, torch.from_numpy(sample_pixels(checkpoint.config)))[:, 1:]
    keys = torch.nn.functional.linear(
        rows_in,
        checkpoint.read("compressor.key_projector.weight"),
        checkpoint.read("compressor.key_projector.bias"),
    )
    query = seen.graphs["context"].outputs["compressor.query_projector"]
    bound = query * float(keys.abs().sum(dim=-1).max()) / checkpoint.config.vision.width**0.5
    assert 0 < seen.graphs["context"].scores["compressor.context"] < bound
    assert set(seen.graphs["vision"].scores) == {f"blocks.{i}.attn" for i in range(3)}


def test_more_frames_are_the_larger_of_each(checkpoint: Checkpoint, seen: Activations) -> None:
    """Batches are merged: no figure is of the last one alone."""
    quiet = 0.01 * sample_pixels(checkpoint.config)
    many = np.concatenate([quiet, sample_pixels(checkpoint.config), *[quiet] * 4])
    both, alone = scan_activations(checkpoint, many), scan_activations(checkpoint, quiet)
    for name, largest in both.graphs["vision"].sums.items():
        expected = max(seen.graphs["vision"].sums[name], alone.graphs["vision"].sums[name])
        assert largest == pytest.approx(expected, rel=1e-5)
    assert (both.frames, both.clips == seen.clips) == (len(many), False)


def test_the_report_begins_with_what_is_nearest_to_the_end_of_float16(seen: Activations) -> None:
    found = rows(seen)
    assert [row.largest for row in found] == sorted((row.largest for row in found), reverse=True)
    assert found[0].headroom == FLOAT16_END / found[0].largest
    assert found[0].name in table(found).splitlines()[1]


def test_what_cannot_be_scanned_is_told(checkpoint: Checkpoint) -> None:
    pixels = sample_pixels(checkpoint.config)
    with pytest.raises(UsageError, match="no frame"):
        scan_activations(checkpoint, pixels[:0])
    pixels[1, 2, 3, 4] = np.nan
    with pytest.raises(CheckpointError, match=r"what enters patch_embed\.proj of graph vision is nan"):
        scan_activations(checkpoint, pixels)


# Into a bundle


def test_a_layer_without_a_scale_is_named_and_a_kept_one_is_not_rounded(
    checkpoint: Checkpoint, seen: Activations, tmp_path: Path
) -> None:
    scales = scales_from(seen, EightBits.INT8)
    vision = scales.graphs["vision"]
    del vision.steps["blocks.1.mlp.fc1"]
    with pytest.raises(ScalesError, match=r"no scale for blocks\.1\.mlp\.fc1 of graph vision"):
        write_frame_graphs(checkpoint, tmp_path, FrameTypes(INT8, calibration=Calibration(scales, {})))
    scales.graphs["vision"] = replace(vision, kept=("blocks.1.mlp.fc1",))
    write_frame_graphs(checkpoint, tmp_path, FrameTypes(INT8, calibration=Calibration(scales, {})))
    kept = {name for name in products(tmp_path / "vision.onnx") if name.startswith("blocks")}
    assert kept == {"blocks.1.mlp.fc1"}


def test_something_that_is_always_zero_has_no_scale(seen: Activations) -> None:
    seen.graphs["content"].inputs["content_projector.0"], before = (
        0.0,
        seen.graphs["content"].inputs["content_projector.0"],
    )
    try:
        with pytest.raises(ScalesError, match=r"content_projector\.0 of graph content is 0 in all 3 frames"):
            scales_from(seen, EightBits.INT8)
    finally:
        seen.graphs["content"].inputs["content_projector.0"] = before


def test_int8_needs_ranges_and_refuses_those_of_another_checkpoint(
    checkpoint: Checkpoint, seen: Activations, tmp_path: Path
) -> None:
    golden, file = golden_checkpoint("short-video"), tmp_path / "scales.json"
    assert fingerprint(golden) != fingerprint(checkpoint)
    with pytest.raises(UsageError, match="precision int8 without scales"):
        export_bundle(golden, tmp_path / "out", runner=RUNNER, options=ExportOptions(precision="int8"))
    save_calibration(Calibration(scales_from(seen, EightBits.INT8), {}), file)
    with pytest.raises(ScalesError, match="were made for checkpoint"):
        export_bundle(
            golden, tmp_path / "out", runner=RUNNER, options=ExportOptions(precision="int8", scales=file)
        )
    with pytest.raises(ScalesError, match="have int8 for graph vision; expected fp8"):
        frame_types(checkpoint, FP8, scales=file, seen=None)
    assert [file.name for file in tmp_path.iterdir()] == ["scales.json"]


def test_clips_give_a_bundle_its_ranges_which_make_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "clip.mp4", frames=50)
    common = ["export", str(GOLDEN / "short-video" / "checkpoint"), "--precision", "int8"]
    made, again = tmp_path / "made", tmp_path / "again"
    with pytest.raises(SystemExit) as ended:
        main([*common, "-o", str(made), "--scan", str(tmp_path / "clip.mp4")])
    assert not ended.value.code
    said = capsys.readouterr().err
    assert "llamavid calibrate" in said
    assert "below the end of float16" in said
    bundle = open_bundle(made)
    assert {FILE, SCALES_FILE} <= bundle.manifest.files.keys()
    assert json.loads((made / FILE).read_text())["frames"] == 2
    assert load_scales(made / SCALES_FILE).observer == "absolute maximum"
    with pytest.raises(SystemExit):
        main([*common, "-o", str(again), "--scales", str(made / SCALES_FILE)])
    same = [f"{graph}.onnx{part}" for graph in ("vision", "content", "context") for part in ("", ".data")]
    assert all(open_bundle(again).manifest.files[name] == bundle.manifest.files[name] for name in same)
