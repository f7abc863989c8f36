"""A graph taken apart at its blocks: what goes into each, what comes out, and each as a graph of its own.

    blocks = blocks_of(graph)                  blocks.0, blocks.1, ... as the nodes' names say
    write_marked(graph, blocks, folder)        the graph, with what leaves each block as outputs
    write_block(graph, blocks[3], folder)      one block alone, in float32

Takes a graph without its weights in memory: files made of it name the same weights, and find them through a
link. Knows nothing of what runs them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from llamavid.export.upcast import in_float32

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
MARK = "float32 of "  # before a value's name: the name of the output that shows it

# They give their input's values, arranged in another way: part of whatever made these.
_MOVES = {"Cast", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
_INTEGERS = {"Shape", "Size", "ArgMax", "ArgMin", "NonZero"}
_TRUTHS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "IsInf", "IsNaN"}
_TYPED_BY = {"Where": 1, "DequantizeLinear": 1, "CastLike": 1, "QuantizeLinear": 2}  # the input, if not 0


@dataclass(frozen=True)
class Block:
    """Nodes that belong together.

    Args:
        nodes: positions in the graph, of the block's own.
        needed: and of those that make what is no float or depends on no input: shapes, dequantized weights.
        inputs: floats that it takes, of other blocks or the graph's inputs.
        outputs: floats that others take, or the graph gives.
    """

    name: str
    nodes: tuple[int, ...]
    needed: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph:
    """An ONNX file without its weights."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.model = onnx.load(str(file), load_external_data=False)
        graph = self.model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.inputs = {value.name: value for value in graph.input}
        self.outputs = [value.name for value in graph.output]
        self.producer = {name: at for at, node in enumerate(self.nodes) for name in node.output}

    @cached_property
    def types(self) -> dict[str, int]:
        """Element type of every value. By rule: ONNX cannot infer those behind other makers' operators."""
        types = {name: weight.data_type for name, weight in self.weights.items()}
        types |= {name: value.type.tensor_type.elem_type for name, value in self.inputs.items()}
        for node in self.nodes:
            types |= dict.fromkeys(node.output, _type(node, types))
        return types

    @cached_property
    def computed(self) -> set[str]:
        """Floats that depend on an input. What is made of weights alone, dequantized ones say, does not."""
        found = set(self.inputs)
        for node in self.nodes:
            if found & set(node.input):
                found |= set(node.output)
        return {name for name in found if self.types[name] in FLOATS}


def blocks_of(graph: Graph) -> list[Block]:
    """In the order of the graph. A node in no scope is a block of its own, but for those that move values."""
    members: dict[str, list[int]] = {}
    home: list[str] = []
    for at, node in enumerate(graph.nodes):
        name = _home(graph, node, home)
        home.append(name)
        members.setdefault(name, []).append(at)
    takers: dict[str, set[str]] = {name: {""} for name in graph.outputs}
    for node, name in zip(graph.nodes, home, strict=True):
        for value in node.input:
            takers.setdefault(value, set()).add(name)
    blocks = [_block(graph, name, nodes, takers) for name, nodes in members.items()]
    return [block for block in blocks if block.outputs]


def write_marked(graph: Graph, blocks: Iterable[Block], folder: Path) -> tuple[Path, dict[str, str]]:
    """The whole graph as it is, with more outputs: of each float between blocks, by its name in the graph.

    An output is cast to float32, whatever the graph computes in.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    between = {value for block in blocks for value in (*block.inputs, *block.outputs)}
    names = {value: MARK + value for value in sorted(between - set(graph.inputs) - set(graph.outputs))}
    for value, name in names.items():
        model.graph.node.append(helper.make_node("Cast", [value], [name], name=name, to=TensorProto.FLOAT))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return _written(graph, model, folder / f"marked_{graph.file.name}"), names


def write_block(graph: Graph, block: Block, folder: Path) -> Path:
    """One block as a graph in float32: its inputs and outputs by their names, floats all float32."""
    nodes = [graph.nodes[at] for at in sorted({*block.nodes, *block.needed})]
    used = {name for node in nodes for name in node.input}
    weights = [weight for name, weight in graph.weights.items() if name in used]
    floats = {name for name, kind in graph.types.items() if kind in FLOATS}
    nodes = in_float32(nodes, {weight.name for weight in weights} & floats)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in block.inputs]
    others = sorted(used & set(graph.inputs) - set(block.inputs))
    inputs += [graph.inputs[name] for name in others]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in block.outputs]
    model = helper.make_model(
        helper.make_graph(nodes, block.name, inputs, outputs, weights),
        opset_imports=graph.model.opset_import,
        ir_version=graph.model.ir_version,
    )
    return _written(graph, model, folder / "block.onnx")


def _home(graph: Graph, node: NodeProto, home: list[str]) -> str:
    """The block that a node belongs to."""
    scope, _, inner = node.name.partition("/")
    if inner:
        return scope
    if node.op_type in _MOVES and node.input[0] in graph.producer:
        return home[graph.producer[node.input[0]]]
    return node.name


def _block(graph: Graph, name: str, nodes: list[int], takers: dict[str, set[str]]) -> Block:
    made = {value for at in nodes for value in graph.nodes[at].output}
    outputs = [
        value
        for at in nodes
        for value in graph.nodes[at].output
        if value in graph.computed and takers.get(value, set()) - {name}
    ]
    inputs: dict[str, None] = {}
    needed: dict[int, None] = {}
    looked = [value for at in nodes for value in graph.nodes[at].input]
    while looked:
        value = looked.pop()
        if not value or value in made or value in graph.weights:
            continue
        if value in graph.computed:
            inputs[value] = None
        elif value in graph.producer and graph.producer[value] not in needed:
            needed[graph.producer[value]] = None
            looked += graph.nodes[graph.producer[value]].input
    return Block(name, tuple(nodes), tuple(needed), tuple(inputs), tuple(outputs))


def _type(node: NodeProto, types: dict[str, int]) -> int:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Cast":
        return int(attributes["to"].i)
    if node.op_type in _INTEGERS:
        return int(TensorProto.INT64)
    if node.op_type in _TRUTHS:
        return int(TensorProto.BOOL)
    if "value" in attributes:  # Constant, ConstantOfShape
        return int(attributes["value"].t.data_type)
    at = _TYPED_BY.get(node.op_type, 0)
    if at < len(node.input):
        return types[node.input[at]]
    return int(attributes["output_dtype"].i) if "output_dtype" in attributes else int(TensorProto.UINT8)


def _written(graph: Graph, model: onnx.ModelProto, file: Path) -> Path:
    for data in _weight_files(graph):
        target = file.parent / data.name
        if not target.exists():
            _link(data, target)
    file.write_bytes(model.SerializeToString())
    return file


def _weight_files(graph: Graph) -> Iterator[Path]:
    names = {
        item.value
        for weight in graph.weights.values()
        for item in weight.external_data
        if item.key == "location"
    }
    for name in sorted(names):
        yield graph.file.parent / name


def _link(data: Path, target: Path) -> None:
    """A second name of the same bytes: ONNX Runtime follows no symbolic link out of the graph's folder. Where
    the temporary folder is on another disk, a copy."""
    try:
        os.link(data.resolve(), target)
    except OSError:
        shutil.copyfile(data, target)
