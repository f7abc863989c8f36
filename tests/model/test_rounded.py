"""A rounded layer computes what the exported graph computes, and leaves the model as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from llamavid.calibrated import GraphCalibration
from llamavid.export.frame_types import FrameTypes, write_frame_graphs
from llamavid.export.precision import INT8
from llamavid.formats.eight_bits import EightBits
from llamavid.model.rounded import on_grid, rounded
from llamavid.runtime.parity import run_graph
from llamavid.scales import Divided, Migration
from tests.calibration.naive import FRAGILE, all_rounded, fragile_checkpoint, given, golden, outputs

E4M3, INT8_TYPE = TensorProto.FLOAT8E4M3FN, TensorProto.INT8


def quantized_and_back(x: np.ndarray, scale: float, levels: int) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear as ONNX Runtime has them."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], output_dtype=levels),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "rounded",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(("format", "levels"), [(EightBits.INT8, INT8_TYPE), (EightBits.FP8, E4M3)])
def test_activations_land_where_onnx_runtime_puts_them(format: EightBits, levels: int) -> None:
    """Halves between levels, and what lies outside the range, among them."""
    scale = 0.25  # its multiples are exact, so that a half is one
    inside = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    halves = (np.arange(-140, 140, dtype=np.float32) + 0.5) * scale
    x = np.concatenate([inside * 8, inside * 0.01, halves, np.float32([-1e4, 1e4, 0, -32, 111.9, -112.1])])
    assert np.array_equal(
        on_grid(torch.from_numpy(x), scale, format).numpy(), quantized_and_back(x, scale, levels)
    )


@pytest.mark.parametrize("module", ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"])
def test_a_rounded_layer_computes_what_its_int8_graph_computes(tmp_path: Path, module: str) -> None:
    found = golden()
    scales = found.calibration.scales
    vision = scales.graphs["vision"]
    one = replace(
        vision,
        steps={module: vision.steps[module]},
        kept=tuple(name for name in vision.steps if name != module),
    )
    calibration = replace(found.calibration, scales=replace(scales, graphs={**scales.graphs, "vision": one}))
    graphs = write_frame_graphs(found.checkpoint, tmp_path, FrameTypes(INT8, calibration=calibration))
    pixels = found.sample.pixels
    graph = run_graph(tmp_path, graphs["vision"], {"pixels": pixels.numpy()})["features"]
    exact = found.model.encode_frames(pixels).numpy()
    with all_rounded(found, {"vision": {module}}):
        ours = found.model.encode_frames(pixels).numpy()
    # A sum in another order puts a few activations on the other side of a half.
    assert np.linalg.norm(graph - ours) < 0.1 * np.linalg.norm(ours - exact)


def test_afterwards_the_model_is_what_it_was() -> None:
    found = golden()
    before = outputs(found.model, found.sample)
    every = {graph: set(scales.steps) for graph, scales in found.calibration.scales.graphs.items()}
    with all_rounded(found, every):
        assert not torch.equal(outputs(found.model, found.sample)[0], before[0])
    with pytest.raises(KeyboardInterrupt), all_rounded(found, every):
        raise KeyboardInterrupt
    for was, now in zip(before, outputs(found.model, found.sample), strict=True):
        assert torch.equal(was, now)


def test_a_kept_module_is_not_rounded() -> None:
    found = golden()
    vision = found.calibration.graph("vision")
    assert vision
    kept = replace(vision.scales, steps={}, kept=tuple(vision.scales.steps))
    exact = found.model.encode_frames(found.sample.pixels)
    with rounded(found.model.vision, "", GraphCalibration(kept, {})):
        assert torch.equal(found.model.encode_frames(found.sample.pixels), exact)


def test_a_migration_saves_a_layer_whose_columns_differ(tmp_path: Path) -> None:
    """One column of the weight is a thousand times the others: alone it sets every row's step."""
    found = given(fragile_checkpoint(tmp_path))
    vision, sample = found.calibration.graph("vision"), found.sample
    assert vision
    width = found.checkpoint.config.vision.width
    vector = np.ones(width, np.float32)
    vector[0] = 1e-3
    qkv = Divided("blocks.1.attn.qkv.weight", 2 * width)
    migration = Migration("even", (qkv, Divided("blocks.1.attn.v_bias")), (FRAGILE,))
    migrated = replace(
        vision, scales=replace(vision.scales, migrations=(migration,)), vectors={"even": vector}
    )
    exact = found.model.encode_frames(sample.pixels)

    def error(calibration: GraphCalibration) -> float:
        with rounded(found.model.vision, "", calibration, only={FRAGILE}):
            return float(torch.linalg.norm(found.model.encode_frames(sample.pixels) - exact))

    assert error(migrated) < 0.1 * error(vision)
