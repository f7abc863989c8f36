"""A bisection names the very block that is wrong, whatever the errors do that come after it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from llamavid.bundle import Bundle, open_bundle
from llamavid.elements import as_elements
from llamavid.export.bisect import BLOCK_TOLERANCES, BlockError, bisect, first_wrong, next_inputs
from llamavid.export.blocks import Graph, blocks_of
from llamavid.golden import Golden, read_golden
from llamavid.runtime.parity import run_file
from llamavid.runtime.verify import prefill_inputs, stage_inputs

Array = np.ndarray[Any, Any]

REFERENCE = partial(run_file, exact_int4=True)
BLOCKS = {  # of the recording: three vision blocks, four text layers, two language layers
    "vision": ["blocks.0", "blocks.1", "blocks.2"],
    "context": ["layers.0", "layers.1", "layers.2", "layers.3", "context"],
    "llm": ["layers.0", "layers.1"],
    "llm.static": ["layers.0", "layers.1"],
    "llm.primitive": ["layers.0", "layers.1"],
}
EACH = [(graph, block) for graph, blocks in BLOCKS.items() for block in blocks]


@pytest.fixture(scope="module", params=["float32", "float16 and int4"])
def bundle(request: pytest.FixtureRequest, short_bundle: Path, int4_bundle: Path) -> Bundle:
    return open_bundle(short_bundle if request.param == "float32" else int4_bundle)


def inputs_of(bundle: Bundle, graph: str) -> dict[str, Array]:
    golden, contract = read_golden(bundle), bundle.manifest.graphs[graph].contract
    return (
        prefill_inputs(golden, contract, 256)
        if graph.startswith("llm")
        else stage_inputs(golden, contract, np.arange(3))
    )


def bisected(
    bundle: Bundle, graph: str, change: Callable[[ModelProto], None] = lambda model: None, **given: Any
) -> tuple[list[BlockError], BlockError | None]:
    """Of a graph that runs with `change`: an engine whose builder has a fault."""

    def run(file: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
        model = onnx.load(str(file), load_external_data=False)
        change(model)
        broken = file.with_name("broken.onnx")
        broken.write_bytes(model.SerializeToString())
        return run_file(broken, inputs)

    entry = bundle.manifest.graphs[graph]
    inputs = given.get("inputs") or inputs_of(bundle, graph)
    file = bundle.path(entry.file)
    steps = list(bisect(file, entry.contract, inputs, run=run, reference=REFERENCE))
    return steps, first_wrong(steps, entry.precision)


# Ways to be wrong.


def nodes_in(model: ModelProto, block: str, *kinds: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.name.startswith(f"{block}/") and node.op_type in kinds]


def another_operator(model: ModelProto, block: str) -> None:
    """The activation, or the softmax, is another one; the first, as the last layer's words go nowhere."""
    node = next(node for kind in ("Gelu", "Sigmoid", "Softmax") for node in nodes_in(model, block, kind))
    node.op_type = {"Gelu": "Relu", "Sigmoid": "Tanh", "Softmax": "LogSoftmax"}[node.op_type]


def a_weight_that_is_off(model: ModelProto, block: str, graph: Graph) -> None:
    """The first that is added or multiplied by: one number in ten."""
    names = {weight.name: weight for weight in model.graph.initializer}
    nodes = nodes_in(model, block, "Add", "RMSNormalization", "Mul", "MatMul")
    taken = (name for node in nodes for name in node.input)
    name = next(name for name in taken if name in names and names[name].external_data)
    where = {item.key: item.value for item in names[name].external_data}
    dtype, shape = helper.tensor_dtype_to_np_dtype(names[name].data_type), tuple(names[name].dims)
    data = graph.file.with_name(where["location"])
    values = np.fromfile(data, dtype, count=math.prod(shape), offset=int(where["offset"]))
    values[::10] += dtype.type(1)
    names[name].CopyFrom(numpy_helper.from_array(values.reshape(shape), name))


def overflow(model: ModelProto, block: str, graph: Graph) -> None:
    """A product that leaves float16 on its way, as a ViT's sums do."""
    node = nodes_in(model, block, "MatMul")[0]
    result, inner = node.output[0], f"{node.output[0]} before"
    node.output[0] = inner
    big = numpy_helper.from_array(np.asarray(1e6, np.float32), f"{inner} big")
    model.graph.initializer.append(big)
    added = [
        helper.make_node("Cast", [inner], [f"{inner} 1"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{inner} 1", big.name], [f"{inner} 2"]),
        helper.make_node("Cast", [f"{inner} 2"], [f"{inner} 3"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{inner} 3"], [result], to=graph.types[result]),
    ]
    at = list(model.graph.node).index(node)
    for offset, more in enumerate(added):
        model.graph.node.insert(at + 1 + offset, more)


def heads_mixed(model: ModelProto, block: str) -> None:
    """Attention's own fault: scores of another scale."""
    (node,) = nodes_in(model, block, "GroupQueryAttention")
    for attribute in node.attribute:
        if attribute.name == "scale":
            attribute.f *= 1.5


# What is found.


@pytest.mark.parametrize("graph", ["content", *BLOCKS])
def test_a_sound_graph_has_no_wrong_block(bundle: Bundle, graph: str) -> None:
    steps, first = bisected(bundle, graph)
    assert first is None
    assert all(math.isfinite(step.error) for step in steps)
    names = [step.block for step in steps]
    assert [name for name in names if name in BLOCKS.get(graph, [])] == BLOCKS.get(graph, [])


@pytest.mark.parametrize(("graph", "block"), EACH)
def test_the_block_with_another_operator_is_named(bundle: Bundle, graph: str, block: str) -> None:
    """And no other: what comes after has the error and did not make it."""
    steps, first = bisected(bundle, graph, lambda model: another_operator(model, block))
    assert first is not None
    assert first.block == block
    bound = BLOCK_TOLERANCES[bundle.manifest.graphs[graph].precision]
    assert [step.block for step in steps if not step.own_error <= bound] == [block]


@pytest.mark.parametrize(("graph", "block"), EACH)
def test_the_block_with_a_weight_that_is_off_is_named(bundle: Bundle, graph: str, block: str) -> None:
    whole = Graph(bundle.path(bundle.manifest.graphs[graph].file))
    _, first = bisected(bundle, graph, lambda model: a_weight_that_is_off(model, block, whole))
    assert first is not None
    assert first.block == block


@pytest.mark.parametrize(("graph", "block"), EACH)
def test_the_block_that_overflows_is_named(bundle: Bundle, graph: str, block: str) -> None:
    """Everything after it is no number either, and is not blamed."""
    whole = Graph(bundle.path(bundle.manifest.graphs[graph].file))
    _, first = bisected(bundle, graph, lambda model: overflow(model, block, whole))
    assert first is not None
    assert first.block == block
    assert not first.own_error < 1


@pytest.mark.parametrize("block", BLOCKS["llm"])
def test_a_fault_of_decode_alone_is_found_on_a_filled_cache(bundle: Bundle, block: str) -> None:
    entry, golden = bundle.manifest.graphs["llm"], read_golden(bundle)
    prefill = inputs_of(bundle, "llm")
    outputs = run_file(bundle.path(entry.file), prefill)
    decode = next_inputs(prefill, outputs, one_row(bundle, golden))
    assert bisected(bundle, "llm", inputs=decode)[1] is None
    _, first = bisected(bundle, "llm", lambda model: heads_mixed(model, block), inputs=decode)
    assert first is not None
    assert first.block == block


def one_row(bundle: Bundle, golden: Golden) -> Array:
    dtype = bundle.manifest.graphs["llm"].contract.spec("inputs_embeds").dtype
    return as_elements(golden.sequence[:, 16:17], dtype)


def test_a_filled_cache_goes_on_as_the_decoder_s_does(short_bundle: Path) -> None:
    """Else a decode step would be bisected that no answer has: its logits are PyTorch's."""
    bundle = open_bundle(short_bundle)
    golden, file = read_golden(bundle), bundle.path("llm.onnx")
    inputs = inputs_of(bundle, "llm")
    found = [run_file(file, inputs)]
    for start, count in ((16, 7), (23, 1), (24, 1)):
        inputs = next_inputs(inputs, found[-1], golden.sequence[:, start : start + count])
        found.append(run_file(file, inputs))
    for outputs, logits in zip(found, golden.logits, strict=False):
        assert np.abs(outputs["logits"][0] - logits).max() / np.abs(logits).max() < 1e-5


def test_new_rows_go_into_the_cache_where_a_graph_gives_them_alone() -> None:
    past = np.zeros((1, 1, 8, 2), np.float32)
    inputs = {
        "inputs_embeds": np.zeros((1, 3, 4), np.float32),
        "total_length": np.asarray([5], np.int32),
        "past.0.key": past,
    }
    new = np.ones((1, 1, 3, 2), np.float32)
    after = next_inputs(inputs, {"new.0.key": new}, np.zeros((1, 1, 4), np.float32))
    assert after["past.0.key"][0, 0, :, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert after["total_length"].tolist() == [6]
    assert not past.any()


# How it goes about it.


def test_nothing_stays_and_the_bundle_is_as_it_was(bundle: Bundle) -> None:
    before = sorted(os.listdir(bundle.folder.parent))
    bisected(bundle, "content")
    assert sorted(os.listdir(bundle.folder.parent)) == before
    assert open_bundle(bundle.folder).digest == bundle.digest


def test_weights_are_linked_and_not_copied(bundle: Bundle) -> None:
    seen = []

    def run(file: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(os.path.samefile(file.with_name("vision.onnx.data"), bundle.folder / "vision.onnx.data"))
        return run_file(file, inputs)

    entry = bundle.manifest.graphs["vision"]
    list(bisect(bundle.path(entry.file), entry.contract, inputs_of(bundle, "vision"), run=run, reference=run))
    assert len(seen) > 3
    assert all(seen)


@pytest.mark.parametrize("graph", ["content", *BLOCKS])
def test_what_leaves_a_block_is_another_s_input_or_the_graph_s_output(bundle: Bundle, graph: str) -> None:
    opened = Graph(bundle.path(bundle.manifest.graphs[graph].file))
    blocks = blocks_of(opened)
    taken = {value for block in blocks for value in block.inputs} | set(opened.outputs)
    given = {value for block in blocks for value in block.outputs} | set(opened.inputs)
    assert {value for block in blocks for value in block.outputs} <= taken
    assert {value for block in blocks for value in block.inputs} <= given


def test_no_dequantized_weight_is_an_output(int4_bundle: Path) -> None:
    """One of the 7B model's has half a gigabyte."""
    opened = Graph(int4_bundle / "llm.onnx")
    made = {value: opened.nodes[at].op_type for value, at in opened.producer.items()}
    assert "DequantizeLinear" not in {made[value] for block in blocks_of(opened) for value in block.outputs}
