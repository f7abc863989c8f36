"""Our operators and ONNX Runtime's in an exported graph: what they replace; that they compute the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from llamavid.bundle import GraphEntry
from llamavid.errors import BundleError
from llamavid.export.frame_types import FrameTypes, frame_types, write_frame_graphs
from llamavid.export.precision import FP16, FP32, INT8
from llamavid.export.rewrites import NONE, PAYING, Rewrites
from llamavid.export.scan import scan_activations
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.protobuf import fields, written
from llamavid.remarks import KEY
from llamavid.runtime import kernels
from llamavid.runtime.executors import open_session
from llamavid.runtime.kernels import Kernels, our_library, with_kernels

EXACT = 2e-5  # of the norm: float32, summed in another order; 4e-7 was measured
ROUNDED = 5e-3  # a last bit may fall on the other side of a level; the format's own error is 2e-2
OURS = pytest.mark.skipif(our_library() is None, reason="the processor has no AVX-512 VNNI")
FRAMES, BLOCKS, LAYERS, CROSSING = 3, 2, 3, 2

Array = np.ndarray[Any, Any]
Graphs = dict[str, Path]


def graphs(
    folder: Path, *, types: FrameTypes | None = None, rewrites: Rewrites = PAYING, **size: Any
) -> Graphs:
    """Vision and context graphs of a random checkpoint."""
    given = replace(TINY, vision_depth=BLOCKS, text_layers=LAYERS, layers=1, **size)
    write_random_checkpoint(folder / "release", given, seed=11)
    (folder / "graphs").mkdir()
    checkpoint = open_checkpoint(folder / "release" / "checkpoint")
    entries: dict[str, GraphEntry] = write_frame_graphs(
        checkpoint, folder / "graphs", types or FrameTypes(FP32, rewrites=rewrites)
    )
    return {name: folder / "graphs" / entries[name].file for name in ("vision", "context")}


def drawn(session: ort.InferenceSession) -> dict[str, Array]:
    random = np.random.default_rng(1)
    dims = {"n": FRAMES, "R": 257}
    return {
        spec.name: np.array([[2, 20, 30, 40, 3]])
        if spec.name == "question_ids"
        else random.normal(size=[dims.get(dim, dim) for dim in spec.shape]).astype(np.float32)
        for spec in session.get_inputs()
    }


def kinds(text: bytes) -> list[str]:
    return [node.op_type for node in onnx.ModelProto.FromString(text).graph.node]


@pytest.mark.parametrize("rewrites", [NONE, PAYING], ids=["plain", "rewritten"])
@pytest.mark.parametrize("graph", ["vision", "context"])
def test_it_computes_what_the_standard_operators_do(tmp_path: Path, graph: str, rewrites: Rewrites) -> None:
    file = graphs(tmp_path, rewrites=rewrites)[graph]
    ours, standard = (open_session(file, kernels=own) for own in (Kernels.BEST, Kernels.STANDARD))
    inputs = drawn(ours)
    for found, expected in zip(ours.run(None, inputs), standard.run(None, inputs), strict=True):
        assert np.linalg.norm(found - expected) <= EXACT * np.linalg.norm(expected)


def test_every_attention_is_one_operator_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    files = graphs(tmp_path)
    vision, context = (kinds(with_kernels(files[name].read_bytes(), Kernels.ONNX_RUNTIME)) for name in files)
    assert vision.count("MultiHeadAttention") == BLOCKS
    assert "Softmax" not in vision
    # Absorbed cross-attentions and the context attention, of one head, are written otherwise.
    assert context.count("MultiHeadAttention") == LAYERS
    assert context.count("Softmax") == CROSSING + 1


def test_a_masked_attention_stays_as_it_is(tmp_path: Path) -> None:
    """Raw BERT's words look back only; what they see of the frame is not masked."""
    context = graphs(tmp_path, bert_type="raw_bert_layer:2")["context"].read_bytes()
    found = kinds(with_kernels(context, Kernels.ONNX_RUNTIME))
    assert found.count("MultiHeadAttention") == found.count("Softmax") - 1 == 2


def test_half_precision_has_no_such_kernel(tmp_path: Path) -> None:
    text = graphs(tmp_path, types=FrameTypes(FP16))["vision"].read_bytes()
    assert KEY.encode() not in text
    assert with_kernels(text) is text


def test_the_file_stays_standard_onnx(tmp_path: Path) -> None:
    """Every other reader meets operators that it knows."""
    for file in graphs(tmp_path).values():
        assert {node.domain for node in onnx.load(str(file), load_external_data=False).graph.node} == {""}


def test_fields_written_again_are_the_same_bytes(tmp_path: Path) -> None:
    text = graphs(tmp_path)["vision"].read_bytes()
    assert written(fields(text)) == text


def test_what_others_noted_on_a_node_is_kept(tmp_path: Path) -> None:
    """Protocol buffers leave an empty value out."""
    file = graphs(tmp_path)["vision"]
    model = onnx.load(str(file), load_external_data=False)
    for node in model.graph.node:
        node.metadata_props.insert(0, onnx.StringStringEntryProto(key="seen", value=""))
    replaced = onnx.ModelProto.FromString(with_kernels(model.SerializeToString(), Kernels.ONNX_RUNTIME))
    assert [node.op_type for node in replaced.graph.node].count("MultiHeadAttention") == BLOCKS
    kept = [node for node in replaced.graph.node if node.op_type == "LayerNormalization"]
    assert kept
    assert all([entry.key for entry in node.metadata_props] == ["seen"] for node in kept)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_cut_file_is_no_bundle(tmp_path: Path, cut: int) -> None:
    file = graphs(tmp_path)["vision"]
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        open_session(file)


def test_a_remark_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    file = graphs(tmp_path)["vision"]
    model = onnx.load(str(file), load_external_data=False)
    for node in model.graph.node:
        for entry in node.metadata_props:
            entry.value = '{"q": "x"}'
    file.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="cannot be loaded"):
        open_session(file)


@pytest.fixture(scope="module")
def in_int8(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Of one scan of random frames."""
    folder = tmp_path_factory.mktemp("int8")
    size = replace(TINY, vision_depth=BLOCKS, text_layers=LAYERS, layers=1)
    write_random_checkpoint(folder / "release", size, seed=11)
    checkpoint = open_checkpoint(folder / "release" / "checkpoint")
    side = checkpoint.config.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((2, 3, side, side), np.float32)
    types = frame_types(checkpoint, INT8, scales=None, seen=scan_activations(checkpoint, pixels))
    (folder / "graphs").mkdir()
    entries = write_frame_graphs(checkpoint, folder / "graphs", types)
    return {name: folder / "graphs" / entries[name].file for name in ("vision", "content", "context")}


@pytest.mark.parametrize("graph", ["vision", "content", "context"])
def test_int8_products_and_their_biases_are_one_operator(in_int8: Graphs, graph: str) -> None:
    found = kinds(with_kernels(in_int8[graph].read_bytes(), Kernels.ONNX_RUNTIME))
    assert found.count("MatMulIntegerToFloat") > 0
    assert "DequantizeLinear" not in found


def test_values_are_rounded_once_for_all_their_products(in_int8: Graphs) -> None:
    """Queries, keys and values of the text decoder take the same words."""
    text = with_kernels(in_int8["context"].read_bytes(), Kernels.ONNX_RUNTIME)
    rounded = [
        tuple(node.input[:2])
        for node in onnx.ModelProto.FromString(text).graph.node
        if node.op_type == "QuantizeLinear"
    ]
    assert len(rounded) == len(set(rounded)) < kinds(text).count("MatMulIntegerToFloat")


@OURS
@pytest.mark.parametrize("graph", ["vision", "content", "context"])
def test_our_operators_take_in_gelu_and_the_rounding_behind_them(in_int8: Graphs, graph: str) -> None:
    theirs, ours = (
        kinds(with_kernels(in_int8[graph].read_bytes(), kernels))
        for kernels in (Kernels.ONNX_RUNTIME, Kernels.BEST)
    )
    assert ours.count("Int8ProductRounded") == theirs.count("Gelu") > 0
    assert ours.count("Int8ProductRounded") + ours.count("Int8Product") == theirs.count(
        "MatMulIntegerToFloat"
    )
    assert ours.count("AttentionRounded") == theirs.count("MultiHeadAttention")
    assert ours.count("LayerNorm") == theirs.count("LayerNormalization")
    assert not {"Gelu", "Attention", "LayerNormalization"} & set(ours)


@OURS
def test_nothing_of_an_int8_encoder_is_rounded_apart(in_int8: Graphs) -> None:
    found = kinds(with_kernels(in_int8["vision"].read_bytes()))
    assert "QuantizeLinear" not in found
    assert found.count("Add") == 1  # of the last block, which nothing normalizes


@OURS
def test_our_attention_takes_in_its_biases_and_the_split_of_a_joined_product(tmp_path: Path) -> None:
    file = graphs(tmp_path)["vision"]
    theirs, ours = (
        kinds(with_kernels(file.read_bytes(), own)) for own in (Kernels.ONNX_RUNTIME, Kernels.BEST)
    )
    assert ours.count("Attention") == theirs.count("Split") == BLOCKS
    assert "Split" not in ours
    biases = 2 * BLOCKS  # of queries and of values
    assert theirs.count("Add") - ours.count("Add") == biases + ours.count("LayerNorm")


@OURS
@pytest.mark.parametrize("graph", ["vision", "content", "context"])
def test_our_products_compute_what_the_standard_operators_do(in_int8: Graphs, graph: str) -> None:
    ours, standard = (open_session(in_int8[graph], kernels=own) for own in (Kernels.BEST, Kernels.STANDARD))
    inputs = drawn(ours)
    for found, expected in zip(ours.run(None, inputs), standard.run(None, inputs), strict=True):
        assert np.linalg.norm(found - expected) <= ROUNDED * np.linalg.norm(expected)


def test_a_processor_without_our_products_takes_onnx_runtimes(
    in_int8: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAVID_PIXELS", "numpy")
    found = kinds(with_kernels(in_int8["vision"].read_bytes()))
    assert "MatMulIntegerToFloat" in found
    assert "Int8Product" not in found


@pytest.mark.parametrize("levels", [kernels._UINT8, kernels._INT8], ids=["unsigned", "signed"])
@pytest.mark.parametrize("graph", ["vision", "content", "context"])
def test_int8_levels_are_the_same_with_either_sign(
    in_int8: Graphs, graph: str, levels: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other machines' zero point runs here too, but slowly."""
    monkeypatch.setattr(kernels, "_LEVELS", levels)
    ours, standard = (
        open_session(in_int8[graph], kernels=own) for own in (Kernels.ONNX_RUNTIME, Kernels.STANDARD)
    )
    inputs = drawn(ours)
    for found, expected in zip(ours.run(None, inputs), standard.run(None, inputs), strict=True):
        assert np.linalg.norm(found - expected) <= ROUNDED * np.linalg.norm(expected)
