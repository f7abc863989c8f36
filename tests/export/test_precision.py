"""Typed graphs of every precision: sound, strictly typed, and as far from PyTorch as their format costs.

What TensorRT-RTX makes of them is tested with the builder.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from llamavid.bundle import GraphEntry
from llamavid.contract import DType, GraphContract, TensorSpec
from llamavid.errors import ParityError, UsageError
from llamavid.export.activations import Activations
from llamavid.export.builder import GraphBuilder
from llamavid.export.emulation import EmulatedBuilder
from llamavid.export.frame_types import FrameTypes, frame_types, write_frame_graphs
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.export.precision import BF16, FP16, FP32, PRECISIONS, frame_precision
from llamavid.export.scan import scan_activations
from llamavid.export.type_plan import TypePlan
from llamavid.export.verify import relative_errors, sample_pixels
from llamavid.formats.eight_bits import EightBits, quantize_columns
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.model.streamed import streamed_features
from llamavid.runtime.parity import run_graph
from tests.conftest import RUNNER, golden_checkpoint

Array = np.ndarray[Any, Any]
Graphs = dict[str, GraphEntry]

QUESTION_IDS = np.array([[2, 20, 30, 40, 3]])
# Norm of the error over the norm, after three blocks; measured in brackets.
ERRORS = {
    "fp32": (0, 2e-6),
    "fp16": (1e-5, 2e-3),  # 5e-4
    "bf16": (1e-3, 2e-2),  # 5e-3, ten times float16's: 8 bits for 11
    "int8": (1e-3, 1e-1),  # 2e-2
    "fp8": (5e-3, 1e-1),  # 3e-2
    "int4": (1e-2, 3e-1),  # 0.13
}
VARIANTS = [
    *((name, None) for name in PRECISIONS),
    ("int8", "fp16"),
    ("int4", "fp32"),
]


@pytest.fixture(scope="module", params=["qformer_pretrain", "raw_bert_layer:2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("random") / "release"
    write_random_checkpoint(folder, replace(TINY, bert_type=request.param), seed=5)
    return open_checkpoint(folder / "checkpoint")


def types(checkpoint: Checkpoint, name: str, compute: str | None = None, *, scan: bool = False) -> FrameTypes:
    precision = frame_precision(name, compute=compute, int4_block=32)
    if precision.eight_bits or scan:
        return frame_types(checkpoint, precision, scales=None, seen=_seen(checkpoint.folder))
    return FrameTypes(precision)


@functools.cache
def _seen(folder: Path) -> Activations:
    checkpoint = open_checkpoint(folder)
    return scan_activations(checkpoint, sample_pixels(checkpoint.config))


def run(folder: Path, entry: GraphEntry, **inputs: Array) -> Array:
    specs = {spec.name: spec.dtype.numpy for spec in entry.contract.inputs}
    typed = {name: array.astype(specs[name]) for name, array in inputs.items()}
    return next(iter(run_graph(folder, entry, typed).values())).astype(np.float32)


def kinds(file: Path, tmp_path: Path) -> Counter[str]:
    """Operators of a graph as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


# Strongly typed


@pytest.mark.parametrize(
    ("name", "compute", "scan"), [*((*v, False) for v in VARIANTS), ("fp16", None, True)]
)
def test_no_node_mixes_types(
    checkpoint: Checkpoint, name: str, compute: str | None, scan: bool, tmp_path: Path
) -> None:
    """TensorRT refuses an Add of float16 and float32, or a scale of another type than what it scales."""
    write_frame_graphs(checkpoint, tmp_path, types(checkpoint, name, compute, scan=scan))
    for graph in ("vision", "content", "context"):
        file = tmp_path / f"{graph}.onnx"
        onnx.checker.check_model(str(file), full_check=True)
        inferred = onnx.shape_inference.infer_shapes(onnx.load(str(file), load_external_data=False))
        known = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
        known |= {value.name: value.type.tensor_type.elem_type for value in inferred.graph.input}
        known |= {weight.name: weight.data_type for weight in inferred.graph.initializer}
        for node in inferred.graph.node:
            if node.op_type in ("Add", "Sub", "Mul", "MatMul", "Conv", "Concat", "LayerNormalization"):
                assert len({known[value] for value in node.input}) == 1, node.name
            if node.op_type == "QuantizeLinear":
                assert known[node.input[0]] == known[node.input[1]], node.name
        assert all(known.values())


def test_each_precision_stores_its_weights_in_its_format(checkpoint: Checkpoint, tmp_path: Path) -> None:
    stored = {
        "fp32": TensorProto.FLOAT,
        "fp16": TensorProto.FLOAT16,
        "bf16": TensorProto.BFLOAT16,
        "int8": TensorProto.INT8,
        "fp8": TensorProto.FLOAT8E4M3FN,
        "int4": TensorProto.INT4,
    }
    for name, expected in stored.items():
        write_frame_graphs(checkpoint, tmp_path, types(checkpoint, name))
        graph = onnx.load(str(tmp_path / "vision.onnx"), load_external_data=False).graph
        found = {weight.name: weight.data_type for weight in graph.initializer}
        assert found["blocks.1.mlp.fc1.weight"] == expected
        assert found["blocks.1.norm1.weight"] == TensorProto.FLOAT


def test_layer_norm_softmax_and_careful_sums_are_float32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("fp16", "bf16"):
        write_frame_graphs(checkpoint, tmp_path, types(checkpoint, name))
        model = onnx.shape_inference.infer_shapes(
            onnx.load(str(tmp_path / "vision.onnx"), load_external_data=False)
        )
        known = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        for node in model.graph.node:
            if node.op_type in ("LayerNormalization", "Softmax"):
                assert known[node.output[0]] == TensorProto.FLOAT
        sums = [node for node in model.graph.node if node.op_type == "Add" and node.input[0] in known]
        wide = [node for node in sums if known[node.output[0]] == TensorProto.FLOAT]
        assert len(wide) == 1 + 2 * checkpoint.config.vision.depth


# Right


@pytest.mark.parametrize(("name", "compute"), VARIANTS)
def test_a_graph_is_as_far_from_pytorch_as_its_format_costs(
    checkpoint: Checkpoint, name: str, compute: str | None, tmp_path: Path
) -> None:
    chosen = types(checkpoint, name, compute)
    builder = GraphBuilder if chosen.precision.compute is DType.FLOAT32 else EmulatedBuilder
    graphs = write_frame_graphs(checkpoint, tmp_path, chosen, builder=builder)
    pixels = sample_pixels(checkpoint.config)
    expected = streamed_features(checkpoint, torch.from_numpy(pixels)).numpy()
    _, error = relative_errors(expected, run(tmp_path, graphs["vision"], pixels=pixels))
    least, most = ERRORS[name]
    assert least <= error <= most
    for graph, inputs in (("content", {}), ("context", {"question_ids": QUESTION_IDS})):
        assert np.isfinite(run(tmp_path, graphs[graph], features=expected, **inputs)).all()


def test_int8_products_run_as_int8_on_the_cpu(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """All of them, since the graph is float32 around them: with float16 scales ONNX Runtime unpacks."""
    write_frame_graphs(checkpoint, tmp_path, types(checkpoint, "int8"))
    depth = checkpoint.config.vision.depth
    found = kinds(tmp_path / "vision.onnx", tmp_path)
    assert found["MatMulIntegerToFloat"] == 4 * depth  # qkv, proj, fc1, fc2
    assert found["MatMul"] + found["FusedMatMul"] == 2 * depth  # scores and what they gather
    assert found["DequantizeLinear"] == 0


def test_a_column_of_four_bits_is_padded_to_whole_blocks(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """176 rows in blocks of 128: TensorRT refuses a short last block, or takes other blocks than meant."""
    precision = frame_precision("int4", compute=None, int4_block=128)
    write_frame_graphs(checkpoint, tmp_path, FrameTypes(precision))
    graph = onnx.load(str(tmp_path / "vision.onnx"), load_external_data=False).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    assert shapes["blocks.0.attn.proj.weight"] == (256, 176)
    assert shapes["blocks.0.attn.proj.weight.scale"] == (2, 176)


def test_fp8_runs_on_the_cpu_as_it_is_exported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With float32 around them ONNX Runtime 1.31 fuses e4m3 into a node that it then refuses."""
    graphs = write_frame_graphs(checkpoint, tmp_path, types(checkpoint, "fp8"))
    assert np.isfinite(run(tmp_path, graphs["vision"], pixels=sample_pixels(checkpoint.config))).all()
    with pytest.raises(UsageError, match="compute fp32 with precision fp8"):
        ExportOptions(precision="fp8", compute="fp32")


# Emulated half precision


def _sum_graph(builder: type[GraphBuilder], folder: Path) -> Array:
    """a + b in bfloat16, of float32 inputs."""
    spec = [TensorSpec(name, DType.FLOAT32, ("n",)) for name in ("a", "b", "sum")]
    contract = GraphContract(tuple(spec[:2]), tuple(spec[2:]))
    with builder("sum", contract, folder) as g:
        a, b = (g.cast(g.input(name), DType.BFLOAT16) for name in "ab")
        g.output("sum", g.op("Add", g.op("Add", a, b), g.constant(0.0, DType.BFLOAT16)))
        file = g.save()
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    a, b = (np.array(values, np.float32) for values in ([1.0, 1.0, 300.0], [2**-8, 2**-7, 1.0]))
    return session.run(None, {"a": a, "b": b})[0]


def test_emulated_bfloat16_rounds_every_result_to_nearest_even(tmp_path: Path) -> None:
    """ONNX Runtime could take a cast and its inverse for nothing, and the emulation would measure float32."""
    np.testing.assert_array_equal(_sum_graph(EmulatedBuilder, tmp_path), [1.0, 1 + 2**-7, 300.0])


def test_emulated_float16_is_inf_where_a_gpu_is(tmp_path: Path) -> None:
    """ONNX Runtime's CPU drops float16's casts, and hid an overflow that a GPU has."""
    found = {}
    for builder in (GraphBuilder, EmulatedBuilder):
        spec = [TensorSpec(name, DType.FLOAT32, ("n",)) for name in ("x", "y")]
        with builder("twice", GraphContract(tuple(spec[:1]), tuple(spec[1:])), tmp_path) as g:
            x = g.cast(g.input("x"), DType.FLOAT16)
            g.output("y", g.op("Mul", g.op("Add", x, x), g.constant(0.25, DType.FLOAT16)))
            file = g.save()
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found[builder] = session.run(None, {"x": np.array([1.0, 60_000.0], np.float32)})[0]
    np.testing.assert_array_equal(found[EmulatedBuilder], [0.5, np.inf])
    assert np.isfinite(found[GraphBuilder]).all()


def test_onnx_runtime_s_cpu_has_no_bfloat16_to_run_instead(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        _sum_graph(GraphBuilder, tmp_path)


def test_a_bfloat16_bundle_is_compared_by_its_emulation_and_holds_the_real_graphs(tmp_path: Path) -> None:
    options = ExportOptions(precision="bf16")
    manifest = export_bundle(
        golden_checkpoint("short-video"), tmp_path / "bundle", runner=RUNNER, options=options
    )
    (row,) = (row for row in manifest.parity if row.graph == "vision")
    assert 1e-3 < row.norm_error < 2e-2
    graph = onnx.load(str(tmp_path / "bundle" / "vision.onnx"), load_external_data=False).graph
    assert {weight.data_type for weight in graph.initializer} >= {TensorProto.BFLOAT16}
    assert sum(name.endswith(".onnx") for name in manifest.files) == 6


# What float16 does not hold


def _swollen(folder: Path, blocks: dict[int, float]) -> Checkpoint:
    """A random checkpoint whose MLPs of some blocks add a constant to one channel."""
    write_random_checkpoint(folder, TINY, seed=3, dtype=torch.float32)
    tower = folder / "eva_vit_g.pth"
    weights = torch.load(tower, weights_only=True)
    inner = weights.get("model", weights)
    for block, value in blocks.items():
        inner[f"blocks.{block}.mlp.fc2.bias"][5] = value
    torch.save(weights, tower)
    return open_checkpoint(folder / "checkpoint")


# Each branch fits into float16, and so does the last sum; the sum between them does not.
CLIMBING = {0: 50_000.0, 1: 50_000.0, 2: -60_000.0}
ALL_NARROW = TypePlan(frozenset(f"blocks.{i}.{part}" for i in range(3) for part in ("attn", "mlp")))


def _vision_error(folder: Path, checkpoint: Checkpoint, chosen: FrameTypes) -> float:
    """Of all channels but the swollen one, whose size would hide the others; NaN where there is an inf."""
    folder.mkdir()
    entry = write_frame_graphs(checkpoint, folder, chosen, builder=EmulatedBuilder)["vision"]
    pixels = sample_pixels(checkpoint.config)
    expected = streamed_features(checkpoint, torch.from_numpy(pixels)).numpy()
    with np.errstate(invalid="ignore"):
        found = run(folder, entry, pixels=pixels)
        return relative_errors(np.delete(expected, 5, axis=-1), np.delete(found, 5, axis=-1))[1]


def test_a_residual_sum_beyond_float16_stays_a_number(tmp_path: Path) -> None:
    """The commonest complaint about ViTs in float16: a sum becomes inf, and everything after it NaN."""
    checkpoint = _swollen(tmp_path / "release", CLIMBING)
    naive = FrameTypes(FP16, {"vision": ALL_NARROW})
    seen = scan_activations(checkpoint, sample_pixels(checkpoint.config))
    scanned = frame_types(checkpoint, FP16, scales=None, seen=seen)
    assert not _vision_error(tmp_path / "naive", checkpoint, naive) < 1
    assert _vision_error(tmp_path / "careful", checkpoint, FrameTypes(FP16)) < 2e-3
    assert _vision_error(tmp_path / "scanned", checkpoint, scanned) < 2e-3
    assert "blocks.0.attn" in scanned.plans["vision"].narrow_sums
    assert {"blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"}.isdisjoint(scanned.plans["vision"].narrow_sums)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_product_beyond_float16_fails_the_export_until_a_scan_widens_it(tmp_path: Path) -> None:
    checkpoint = _swollen(tmp_path / "release", {1: 100_000.0})
    options = ExportOptions(precision="fp16")
    with pytest.raises(ParityError, match=r"graph vision \(fp16\)"):
        export_bundle(checkpoint, tmp_path / "bundle", runner=RUNNER, options=options)
    manifest = export_bundle(
        checkpoint,
        tmp_path / "bundle",
        runner=RUNNER,
        options=options,
        frames=sample_pixels(checkpoint.config),
    )
    assert all(row.passed for row in manifest.parity)
    contract = manifest.graphs["vision"].contract
    assert contract.spec("pixels").dtype is DType.FLOAT16
    assert contract.spec("features").dtype is DType.FLOAT32  # they hold the swollen channel
    assert manifest.graphs["context"].contract.spec("features").dtype is DType.FLOAT32


# Eight bits


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 6),
    size=st.sampled_from([1e-6, 1e-2, 1.0, 300.0]),
    compute=st.sampled_from([DType.FLOAT32, DType.FLOAT16]),
    seed=st.integers(0, 9),
)
def test_int8_moves_no_weight_by_more_than_half_a_step(
    rows: int, columns: int, size: float, compute: DType, seed: int
) -> None:
    """With the scale as the graph stores it: float16's rounding of it is no extra error."""
    weight = (size * np.random.default_rng(seed).normal(size=(rows, columns))).astype(np.float32)
    levels, scale = quantize_columns(weight, EightBits.INT8, compute)
    assert (levels == levels.astype(np.int8)).all()
    assert scale.astype(compute.numpy).astype(np.float32).tolist() == scale.tolist()
    # A float16 scale may be rounded down by 2^-11, which clips the largest weight by so much of itself.
    clipped = np.abs(weight).max(axis=0) * 2**-10
    assert (np.abs(levels * scale - weight) <= scale / 2 * (1 + 1e-5) + clipped).all()


def test_e4m3_keeps_three_bits_of_every_weight_that_is_not_tiny() -> None:
    weight = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    levels, scale = quantize_columns(weight, EightBits.FP8, DType.FLOAT16)
    found, scaled = levels * scale, np.abs(weight / scale)
    normal = scaled > 2**-6
    assert np.isfinite(found).all()
    assert (np.abs(found - weight) <= np.abs(weight) * (1 / 16 + 1e-3))[normal].all()
    assert np.abs(levels).max() == EightBits.FP8.largest


@pytest.mark.parametrize("format", EightBits)
def test_a_column_of_zeros_stays_zeros(format: EightBits) -> None:
    levels, scale = quantize_columns(np.zeros((4, 2), np.float32), format, DType.FLOAT16)
    assert (levels == 0).all()
    assert (scale > 0).all()


def test_the_names_of_precisions_are_those_of_the_command_line() -> None:
    for name in PRECISIONS:
        assert frame_precision(name, compute=None, int4_block=32).name == name
    assert (FP32.boundary, FP16.boundary, BF16.boundary) == (DType.FLOAT32, DType.FLOAT16, DType.FLOAT32)
