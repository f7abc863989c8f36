"""Decoder and context told apart by the times of nodes and layers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from llamavid.bundle import open_bundle
from llamavid.embedded import default_bundle
from llamavid.errors import DeviceError
from llamavid.runtime.executors import open_session
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.profile.product_graph import OUR_INT8, product_graph, quantized_product_graph
from llamavid.runtime.profile.stages import CpuStages, split_of
from llamavid.runtime.timing import Timings
from tests.runtime.our_operators import RUN_HERE

HOW = "a test"


def test_nodes_of_the_scope_are_context_and_all_others_decoder() -> None:
    nodes = {"layers.0/MatMul_1": 6.0, "Slice_3": 1.0, "context/MatMul_9": 2.0, "Cast_context_tokens": 1.0}
    assert split_of(nodes, 0.5, HOW) == (0.3, HOW)


@pytest.mark.parametrize(
    "layer",
    [
        "{ForeignNode[layers.0/MatMul_1...context/MatMul_9]}",
        "layers.11/Add_4 + context/MatMul_9",
        "__myl_MulSumAdd_myl0_5",
    ],
)
def test_a_layer_of_both_is_divided_by_operations_and_that_is_told(layer: str) -> None:
    share, how = split_of({layer: 8.0, "context/MatMul_12": 2.0}, 0.25, HOW)
    assert share == pytest.approx(0.2 + 0.8 * 0.25)
    assert "80% of it" in how


def test_a_fused_layer_of_context_alone_is_context() -> None:
    nodes = {"{ForeignNode[context/MatMul_1...context/Add_2]}": 1.0, "layers.0/Add_1 + Slice_2": 3.0}
    assert split_of(nodes, 0.5, HOW) == (0.25, HOW)


def test_nodes_without_times_are_refused() -> None:
    with pytest.raises(DeviceError, match="no node"):
        split_of({"context/Add": 0.0}, 0.5, HOW)


def test_onnx_runtime_s_own_profile_gives_context_a_part_of_the_graph() -> None:
    bundle = open_bundle(default_bundle())
    stages = CpuStages(Graphs(bundle, timings=Timings(), threads=1))
    vision = bundle.manifest.model.vision
    dtype = stages.origin.contracts["context"].spec("features").dtype.numpy
    features = np.random.default_rng(0).normal(size=(2, 1 + vision.patches, vision.width)).astype(dtype)
    share, how = stages.split(
        {"features": features, "question_ids": np.asarray([[3, 4, 5]])}, by_operations=0.1
    )
    assert 0.01 < share < 0.6
    assert how == "ONNX Runtime's time of each node"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_hand_written_product_is_an_onnx_file_that_multiplies(dtype: str) -> None:
    graph, a = product_graph(dtype, 32)
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    b = onnx.numpy_helper.to_array(model.graph.initializer[0])
    (c,) = open_session(graph).run(None, {"a": a})
    wide = np.int32 if dtype == "int8" else np.float64
    np.testing.assert_allclose(c, a.astype(wide) @ b.astype(wide), rtol=2e-2, atol=2e-3)


@RUN_HERE
def test_the_product_of_our_operator_multiplies() -> None:
    graph, a = product_graph(OUR_INT8, 32)
    b = onnx.numpy_helper.to_array(onnx.load_from_string(graph).graph.initializer[0])
    (c,) = open_session(graph).run(None, {"a": a})
    np.testing.assert_array_equal(c, (a.astype(np.int32) - 128) @ b.astype(np.int32))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_quantized_product_is_an_onnx_file(precision: str) -> None:
    onnx.checker.check_model(onnx.load_from_string(quantized_product_graph(precision, 32)), full_check=True)
