"""Every graph of every kind of model agrees with PyTorch, and one that does not makes no bundle.

`export_bundle` compares and refuses on its own; here its bundles are compared once more, on other inputs and
through the code that answers.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from llamavid.bundle import GRAPHS, Bundle, GraphEntry, open_bundle
from llamavid.config import LanguageConfig
from llamavid.contract import DType, TensorSpec
from llamavid.errors import DeviceError, ParityError
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.export.verify import Runner, sample_pixels
from llamavid.formats.int4 import BLOCK_SIZES, dequantized, packed_int4, quantize_int4
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.runtime.parity import run_graph, run_language
from llamavid.runtime.session import FrameTime, VideoSession
from tests.conftest import RUNNER, golden_checkpoint, largest_relative_error

BOUNDS = {
    "fp32": 1e-5,  # the sums in another order
    "fp16": 1e-2,  # float16 products through three blocks; 6e-4 was measured
}
QUESTION = "how many frames can you see?"

Array = np.ndarray[Any, Any]

# What a release may vary, and together every option of the export.
KINDS: dict[str, tuple[dict[str, Any], ExportOptions]] = {
    "raw BERT, 4 content tokens": (
        {"bert_type": "raw_bert_layer:2", "compress_type": "grid:2"},
        ExportOptions(llm_precision="int4", int4_block=64),
    ),
    "a grid that does not divide, linear projector, long context": (
        {"compress_type": "grid:3", "mm_projector_type": "linear", "rope_factor": 16.0},
        ExportOptions(),
    ),
    "every patch, three-layer projector, grouped queries": (
        {"compress_type": None, "mm_projector_type": "mlp3x_gelu", "kv_heads": 2},
        ExportOptions(),
    ),
    "336 px, projected image rows": (
        {"image_size": 336, "text_image_width": 88, "vision_depth": 1},
        ExportOptions(precision="fp16", llm_precision="int4", int4_block=128),
    ),
    "one layer of each, one key-value head": (
        {"vision_depth": 1, "bert_type": "raw_bert_layer:1", "layers": 1, "kv_heads": 1},
        ExportOptions(precision="fp16", llm_precision="fp16"),
    ),
}
FLOAT32_KINDS = [name for name, (_, options) in KINDS.items() if options == ExportOptions()]


@dataclass(frozen=True)
class Exported:
    """One random model: as PyTorch computes it, and as a bundle."""

    witness: LlamaVid
    bundle: Bundle

    def features(self, pixels: Array) -> Array:
        return self.witness.encode_frames(torch.from_numpy(pixels)).numpy()

    def frame_tokens(self, features: Array, question: str) -> Array:
        return self.witness.frame_tokens(torch.from_numpy(features), question).numpy()

    def run(self, graph: str, **inputs: Array) -> Array:
        """The first output of one frame graph of the bundle; every input takes the contract's type."""
        return next(iter(self.run_all(graph, **inputs).values()))

    def run_all(self, graph: str, **inputs: Array) -> dict[str, Array]:
        """Every output, as float32."""
        entry = self.bundle.manifest.graphs[graph]
        typed = {name: array.astype(entry.contract.spec(name).dtype.numpy) for name, array in inputs.items()}
        found = run_graph(self.bundle.folder, entry, typed)
        return {name: array.astype(np.float32) for name, array in found.items()}

    def run_frame_tokens(self, features: Array, question: str) -> Array:
        """What `frame_tokens` is in PyTorch."""
        ids = self.witness.question_tokenizer.ids(question)
        context = self.run("context", features=features, question_ids=ids)
        return np.concatenate([context, self.run("content", features=features)], axis=1)

    def require_close(self, found: Array, expected: Array) -> None:
        assert (
            largest_relative_error(found, expected) <= BOUNDS[self.bundle.manifest.graphs["vision"].precision]
        )


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    change, options = KINDS[request.param]
    folder = tmp_path_factory.mktemp("random")
    write_random_checkpoint(folder / "release", replace(TINY, **change), seed=7, dtype=torch.float32)
    opened = open_checkpoint(folder / "release" / "checkpoint")
    manifest = export_bundle(opened, folder / "bundle", runner=RUNNER, options=options)
    assert all(row.passed for row in manifest.parity)
    return Exported(model_from_checkpoint(opened), open_bundle(folder / "bundle"))


def three_frames(model: LlamaVid) -> Array:
    """Pixels [3, 3, S, S] that the export did not compare with."""
    pixels = sample_pixels(model.config)
    return np.concatenate([pixels[:, :, ::-1], 0.5 * pixels[1:]])


# Every kind of model


def test_features_are_those_of_pytorch(exported: Exported) -> None:
    pixels = three_frames(exported.witness)
    exported.require_close(exported.run("vision", pixels=pixels), exported.features(pixels))


@pytest.mark.parametrize("first_row", [0, 1], ids=["with the class token", "stored without the class token"])
def test_frame_tokens_are_those_of_pytorch(exported: Exported, first_row: int) -> None:
    seen = exported.features(three_frames(exported.witness))[:, first_row:]
    found = exported.run_frame_tokens(seen, QUESTION)
    assert found.shape[1] == exported.witness.config.tokens_per_frame
    exported.require_close(found, exported.frame_tokens(seen, QUESTION))


@pytest.mark.parametrize("first_row", [0, 1], ids=["with the class token", "stored without the class token"])
def test_what_the_question_looks_at_is_what_pytorch_looks_at(exported: Exported, first_row: int) -> None:
    seen = exported.features(three_frames(exported.witness))[:, first_row:]
    ids = exported.witness.question_tokenizer.ids(QUESTION)
    found = exported.run_all("context", features=seen, question_ids=ids)
    with torch.inference_mode():
        rows = torch.from_numpy(seen)
        query = exported.witness.compressor.text_query(
            exported.witness.text_decoder(rows, torch.from_numpy(ids))
        )
        expected = exported.witness.compressor.context_attention(rows, query)
    np.testing.assert_allclose(found["attention"].sum(axis=1), 1, rtol=1e-5)
    for name, values in expected._asdict().items():
        exported.require_close(found[name], values.numpy())


@pytest.mark.parametrize("words", [1, 254], ids=["a word", "as many as fit"])
def test_a_question_may_have_any_length(exported: Exported, words: int) -> None:
    question = "a " * words
    assert exported.witness.question_tokenizer.ids(question).shape == (1, words + 2)
    seen = exported.features(three_frames(exported.witness)[:1])
    exported.require_close(exported.run_frame_tokens(seen, question), exported.frame_tokens(seen, question))


def test_a_frame_does_not_depend_on_the_frames_beside_it(exported: Exported) -> None:
    pixels = three_frames(exported.witness)
    seen = exported.run("vision", pixels=pixels)
    alone = np.concatenate([exported.run("vision", pixels=frame[None]) for frame in pixels])
    exported.require_close(alone, seen)
    alone = np.concatenate([exported.run_frame_tokens(frame[None], QUESTION) for frame in seen])
    exported.require_close(alone, exported.run_frame_tokens(seen, QUESTION))


@pytest.mark.parametrize("exported", FLOAT32_KINDS, indirect=True)
def test_a_float32_bundle_says_what_pytorch_says(exported: Exported) -> None:
    seen = exported.features(three_frames(exported.witness))
    with VideoSession(exported.bundle) as session:
        session.adopt(seen, [FrameTime(index, float(index)) for index in range(3)])
        said = session.ask(QUESTION, max_new_tokens=8).token_ids
    assert list(said) == exported.witness.generate(torch.from_numpy(seen), QUESTION, max_new_tokens=8)


# A graph that is wrong


def losing(tensor: str, graph: str) -> Runner:
    """The real runner, on a disk that lost one tensor of one graph: it reads as zeros."""

    def lose(folder: Path, entry: GraphEntry) -> None:
        if entry.file != f"{graph}.onnx":
            return
        model = onnx.load(str(folder / entry.file), load_external_data=False)
        (lost,) = (weight for weight in model.graph.initializer if weight.name == tensor)
        where = {item.key: item.value for item in lost.external_data}
        with (folder / where["location"]).open("r+b") as data:
            data.seek(int(where["offset"]))
            data.write(bytes(int(where["length"])))

    def spoiled_graph(folder: Path, entry: GraphEntry, inputs: dict[str, Array]) -> dict[str, Array]:
        lose(folder, entry)
        return run_graph(folder, entry, inputs)

    def spoiled_language(
        folder: Path,
        entry: GraphEntry,
        language: LanguageConfig,
        chunks: Sequence[Array],
        *,
        exact_int4: bool = False,
    ) -> Array:
        lose(folder, entry)
        return run_language(folder, entry, language, chunks, exact_int4=exact_int4)

    return Runner(spoiled_graph, spoiled_language)


@pytest.mark.parametrize(
    ("graph", "tensor"),
    [
        ("vision", "blocks.2.attn.q_bias"),
        ("content", "content_projector.2.bias"),
        ("context", "text_decoder.layers.2.query_feed_forward.up.bias"),
        ("context", "text_decoder.position_embeddings.weight"),
        ("llm", "rope.sin"),
        ("llm", "model.layers.1.self_attn.k_proj.weight"),
        ("llm.static", "positions"),
        ("llm.primitive", "positions"),
    ],
)
def test_one_lost_tensor_fails_the_export_and_leaves_nothing(tmp_path: Path, graph: str, tensor: str) -> None:
    with pytest.raises(ParityError, match=rf"graph {graph}(\.\w+)? \(fp32\) differs from PyTorch"):
        export_bundle(golden_checkpoint("short-video"), tmp_path / "bundle", runner=losing(tensor, graph))
    assert os.listdir(tmp_path) == []


def test_a_small_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=20_100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DeviceError, match=r"0\.0 GB free; expected 0\.0 GB for the bundle\. Make room"):
        export_bundle(golden_checkpoint("short-video"), tmp_path / "bundle", runner=RUNNER)
    assert list(tmp_path.iterdir()) == []


def test_lost_int4_scales_fail_the_export(tmp_path: Path) -> None:
    options = ExportOptions(llm_precision="int4")
    runner = losing("model.layers.0.mlp.down_proj.weight.scale", "llm")
    with pytest.raises(ParityError, match=r"graph llm(\.\w+)? \(int4\) differs from PyTorch"):
        export_bundle(golden_checkpoint("short-video"), tmp_path / "bundle", runner=runner, options=options)
    assert os.listdir(tmp_path) == []


# The files


@pytest.fixture(scope="module", params=["float32", "int4"])
def any_bundle(request: pytest.FixtureRequest, short_bundle: Path, int4_bundle: Path) -> Bundle:
    return open_bundle(short_bundle if request.param == "float32" else int4_bundle)


ORT_TYPES = {
    DType.FLOAT32: "tensor(float)",
    DType.FLOAT16: "tensor(float16)",
    DType.INT64: "tensor(int64)",
    DType.INT32: "tensor(int32)",
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_manifest_tells_each_graph_s_real_boundary(any_bundle: Bundle, graph: str) -> None:
    entry = any_bundle.manifest.graphs[graph]
    real = ort.InferenceSession(str(any_bundle.path(entry.file)), providers=["CPUExecutionProvider"])

    def told(specs: Sequence[TensorSpec]) -> list[tuple[str, str, list[Any]]]:
        return [(spec.name, ORT_TYPES[spec.dtype], list(spec.shape)) for spec in specs]

    def found(nodes: Sequence[Any]) -> list[tuple[str, str, list[Any]]]:
        return [(node.name, node.type, node.shape) for node in nodes]

    assert found(real.get_inputs()) == told(entry.contract.inputs)
    assert found(real.get_outputs()) == told(entry.contract.outputs)


@pytest.mark.parametrize("graph", GRAPHS)
def test_each_file_is_sound_onnx_with_its_weights_beside_it(any_bundle: Bundle, graph: str) -> None:
    file = any_bundle.path(f"{graph}.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    assert file.stat().st_size < 100_000  # structure and small constants only


def test_the_cache_is_updated_in_place(any_bundle: Bundle) -> None:
    """By one operator a layer, whose past and present have one shape: Concat would copy the cache."""
    language = any_bundle.manifest.model.language
    graph = onnx.load(str(any_bundle.path("llm.onnx")), load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["GroupQueryAttention"] == language.layers
    assert kinds["Concat"] == 0
    contract = any_bundle.manifest.graphs["llm"].contract
    for past in contract.inputs[2:]:
        assert contract.spec(past.name.replace("past", "present")).dims == past.dims


def test_int4_products_run_on_int4_weights(int4_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime fuses every DequantizeLinear into its product: weights are never unpacked in memory."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(int4_bundle / "llm.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    layers = open_bundle(int4_bundle).manifest.model.language.layers
    assert kinds["MatMulNBits"] == 7 * layers + 1  # q, k, v, o, gate, up, down; and the head
    assert kinds["MatMul"] == kinds["DequantizeLinear"] == 0
    assert kinds["GroupQueryAttention"] == layers


# int4


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 5),
    block=st.sampled_from(BLOCK_SIZES),
    seed=st.integers(0, 9),
)
def test_packed_weights_are_what_the_standard_unpacks(rows: int, columns: int, block: int, seed: int) -> None:
    """By ONNX's own reference implementation of DequantizeLinear."""
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    levels, scale = quantize_int4(weight, block)
    packed = TensorProto(
        name="levels",
        data_type=TensorProto.INT4,
        dims=weight.shape,
        raw_data=packed_int4(levels).tobytes(),
    )
    unpack = helper.make_node("DequantizeLinear", ["levels", "scale"], ["weight"], axis=0, block_size=block)
    graph = helper.make_graph(
        [unpack],
        "unpack",
        [],
        [helper.make_tensor_value_info("weight", TensorProto.FLOAT, weight.shape)],
        [packed, onnx.numpy_helper.from_array(scale, "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (unpacked,) = ReferenceEvaluator(model).run(None, {})
    np.testing.assert_array_equal(unpacked, dequantized(weight, block))


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_int4_moves_no_weight_by_more_than_half_a_step(block: int) -> None:
    weight = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    weight[:block, 3] = 0  # a block of zeros stays zeros
    found = dequantized(weight, block)
    step = np.repeat(quantize_int4(weight, block).scale, block, axis=0)[:300]
    assert (np.abs(found - weight) <= step / 2 * (1 + 1e-6)).all()
    assert (found[:block, 3] == 0).all()
    assert np.unique(quantize_int4(weight, block).levels).tolist() == list(range(-7, 8))
