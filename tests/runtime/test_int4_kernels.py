"""Our int4 products in an exported graph: which they replace, and that answers stay as good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from llamavid.bundle import GraphEntry
from llamavid.config import LanguageConfig
from llamavid.export.language_graphs import write_language_graphs
from llamavid.export.precision import language_precision
from llamavid.formats.int4 import packed_int4
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.parity import relative_errors
from llamavid.remarks import KEY, Int4Product, written_remark
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.executors import OnnxExecutor, open_session
from llamavid.runtime.int4_kernels import takeable
from llamavid.runtime.kernels import Kernels, with_kernels
from tests.runtime.our_operators import RUN_HERE as OURS

Array = np.ndarray[Any, Any]

LAYERS, TOKENS, BLOCK = 2, 20, 32
ALIKE = 1e-5  # float32, summed in another order; 5e-7 was measured
NO_WORSE = 1.3  # times their error: of 128 numbers a row, some round differently after sums in another order


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphEntry, LanguageConfig]:
    folder = tmp_path_factory.mktemp("int4")
    size = replace(TINY, layers=LAYERS, vision_depth=1)
    checkpoint = open_checkpoint(write_random_checkpoint(folder / "release", size, seed=5) / "checkpoint")
    entries = write_language_graphs(checkpoint, folder, language_precision("int4", int4_block=BLOCK))
    return folder / entries["llm"].file, entries["llm"], checkpoint.config.language


def kinds(text: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.ModelProto.FromString(text).graph.node)


@OURS
def test_every_product_of_the_language_model_is_ours(
    exported: tuple[Path, GraphEntry, LanguageConfig],
) -> None:
    text = exported[0].read_bytes()
    found = kinds(with_kernels(text))
    assert found["Int4Product"] == 7 * LAYERS + 1  # q, k, v, o, gate, up, down; and the head
    assert found["MatMul"] == found["DequantizeLinear"] == 0
    assert kinds(text)["MatMul"] == found["Int4Product"]


@OURS
def test_answers_are_as_good_as_those_of_onnx_runtime_s_products(
    exported: tuple[Path, GraphEntry, LanguageConfig],
) -> None:
    """A prompt in two pieces, and tokens behind it, through the cache."""
    file, entry, language = exported
    rows = np.random.default_rng(0).normal(0, 0.1, (1, TOKENS, language.hidden)).astype(np.float32)

    def logits(**options: Any) -> Array:
        decoder = Decoder(OnnxExecutor(file, entry.contract, **options), entry.contract, language)
        cache = decoder.new_cache(TOKENS)
        return np.stack([decoder.prefill(cache, piece) for piece in np.split(rows, (7, 17, 18, 19), axis=1)])

    exact, theirs = logits(exact_int4=True), logits(kernels=Kernels.ONNX_RUNTIME)
    ours = logits()
    assert not np.array_equal(ours, exact)
    assert max(relative_errors(exact, ours)) <= NO_WORSE * max(relative_errors(exact, theirs))


def test_exact_products_stay_what_they_are(exported: tuple[Path, GraphEntry, LanguageConfig]) -> None:
    found = kinds(with_kernels(exported[0].read_bytes(), exact_int4=True))
    assert found["Int4Product"] == 0
    assert found["DequantizeLinear"] == 7 * LAYERS + 1


@pytest.mark.parametrize("kernels", [Kernels.ONNX_RUNTIME, Kernels.STANDARD])
def test_onnx_runtime_can_be_asked_for(
    exported: tuple[Path, GraphEntry, LanguageConfig], kernels: Kernels
) -> None:
    assert kinds(with_kernels(exported[0].read_bytes(), kernels))["Int4Product"] == 0


def test_a_processor_without_our_products_takes_onnx_runtimes(
    exported: tuple[Path, GraphEntry, LanguageConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAVID_PIXELS", "numpy")
    assert kinds(with_kernels(exported[0].read_bytes()))["Int4Product"] == 0
    open_session(exported[0])


@OURS
def test_a_bundle_without_remarks_is_loaded_as_it_was(
    exported: tuple[Path, GraphEntry, LanguageConfig],
) -> None:
    model = onnx.load(str(exported[0]), load_external_data=False)
    for node in model.graph.node:
        del node.metadata_props[:]
    text = model.SerializeToString()
    assert with_kernels(text) is text


# One product


def one_product(shape: tuple[int, int] = (64, 6), block: int = BLOCK) -> onnx.ModelProto:
    """x times a weight of int4, marked as the exporter does."""
    random = np.random.default_rng(0)
    levels = packed_int4(random.integers(-8, 8, shape, np.int8)).tobytes()
    scales = random.uniform(0.1, 0.2, (shape[0] // block, shape[1])).astype(np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    product.metadata_props.add(key=KEY, value=written_remark(Int4Product("x", "levels", "scales", block)))
    unpack = helper.make_node("DequantizeLinear", ["levels", "scales"], ["w"], axis=0, block_size=block)
    graph = helper.make_graph(
        [unpack, product],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", shape[1]])],
        [
            TensorProto(name="levels", data_type=TensorProto.INT4, dims=shape, raw_data=levels),
            onnx.numpy_helper.from_array(scales, "scales"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def read_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Gather", ["levels", "at"], ["row"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "at"))
    model.graph.output.append(helper.make_tensor_value_info("row", TensorProto.INT4, None))


def multiplied_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Transpose", ["w"], ["turned"]))


def given(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))


def in_numbers(model: onnx.ModelProto) -> None:
    """Which protobuf keeps as int32, a byte each."""
    weight = model.graph.initializer[0]
    weight.int32_data[:] = list(weight.raw_data)
    weight.ClearField("raw_data")


def of_eight_bits(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.data_type, weight.raw_data = TensorProto.INT8, weight.raw_data * 2


@OURS
def test_one_product_gives_what_the_standard_operators_do() -> None:
    text = one_product().SerializeToString()
    x = np.random.default_rng(1).integers(-127, 128, (3, 64)).astype(np.float32)
    x[:, ::32] = 127  # so that rounding changes nothing
    ours, standard = (
        open_session(text, kernels=own, exact_int4=exact).run(None, {"x": x})[0]
        for own, exact in ((Kernels.BEST, False), (Kernels.STANDARD, True))
    )
    assert kinds(with_kernels(text)) == {"Int4Product": 1}
    np.testing.assert_allclose(ours, standard, rtol=1e-5, atol=1e-3)


@OURS
@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("block", [32, 128])
def test_activations_are_rounded_as_onnx_runtime_rounds_them(rows: int, block: int) -> None:
    text = one_product((1024, 64), block).SerializeToString()
    x = np.random.default_rng(1).normal(size=(rows, 1024)).astype(np.float32)
    ours, theirs = (
        open_session(text, kernels=own).run(None, {"x": x})[0] for own in (Kernels.BEST, Kernels.ONNX_RUNTIME)
    )
    assert np.abs(ours - theirs).max() <= ALIKE * np.abs(theirs).max()


@OURS
@pytest.mark.parametrize("change", [read_elsewhere, multiplied_elsewhere, given, in_numbers, of_eight_bits])
def test_a_weight_that_something_else_needs_stays(change: Callable[[onnx.ModelProto], None]) -> None:
    model = one_product()
    change(model)
    found = with_kernels(model.SerializeToString())
    assert kinds(found)["MatMul"] == 1
    assert onnx.ModelProto.FromString(found).graph.initializer[0] == model.graph.initializer[0]


@OURS
@pytest.mark.parametrize(("shape", "block"), [((64, 5), 32), ((48, 6), 16), ((48, 6), 32)])
def test_a_weight_of_another_layout_stays(shape: tuple[int, int], block: int) -> None:
    assert kinds(with_kernels(one_product(shape, block).SerializeToString()))["MatMul"] == 1


def test_nothing_is_taken_from_a_graph_without_remarks() -> None:
    assert takeable([], [], set()) == set()
