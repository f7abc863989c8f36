"""What our operators take in of the nodes around them, as a graph is loaded.

    nodes = joined(nodes, outputs, vectors)

An int8 product takes in the GELU and the rounding behind it; an attention the bias of its queries, the split
of a joined product that they, keys and values come from, and the bias and the rounding behind it. A layer
normalization becomes ours with the addition before it and a rounding behind it. Knows nothing of bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from llamavid.runtime.onnx_nodes import Node, float_attribute, int_attribute

OURS = "llamavid"  # the domain
ZERO = "llamavid.zero point"  # of rounded activations: a constant that `llamavid.runtime.kernels` adds


def joined(nodes: Sequence[Node], outputs: Collection[str], vectors: Collection[str]) -> Sequence[Node]:
    """The same graph in fewer nodes; some that are left give what nobody needs.

    Args:
        nodes: each behind those that it takes from.
        outputs: values that the graph gives.
        vectors: constants of one dimension.
    """
    graph = _Graph(nodes, outputs, vectors)
    return [
        _JOINS.get((node.domain, node.kind), _itself)(node, graph)
        for node in nodes
        if not graph.is_taken(node)
    ]


class _Graph:
    """Who makes a value, who alone takes it, and which nodes were taken in by one before them."""

    def __init__(self, nodes: Sequence[Node], outputs: Collection[str], vectors: Collection[str]) -> None:
        self._outputs, self._vectors = outputs, vectors
        self._taken: set[str] = set()  # by a value that each gave
        self._makers = {value: node for node in nodes for value in node.outputs}
        self._users: dict[str, list[Node]] = {}
        for node in nodes:
            for value in node.inputs:
                self._users.setdefault(value, []).append(node)

    def take(self, node: Node) -> tuple[str, ...]:
        """What the node gave, which from now on is someone else's to give."""
        self._taken.update(node.outputs)
        return node.outputs

    def is_taken(self, node: Node) -> bool:
        return node.outputs[0] in self._taken

    def maker(self, value: str, kind: str) -> Node | None:
        """Where it is of that kind, and its value goes to one node alone."""
        node = self._makers.get(value)
        return node if node and node.kind == kind and len(self._users[value]) == 1 else None

    def user(self, node: Node, kind: str) -> Node | None:
        """Who alone takes what the node gives, if it is of that kind."""
        users = self.users(node)
        return users[0] if len(users) == 1 and users[0] and users[0].kind == kind else None

    def users(self, node: Node) -> Sequence[Node | None]:
        """Who takes what the node gives; None is the graph's caller."""
        (value,) = node.outputs
        return [*self._users.get(value, ()), *([None] if value in self._outputs else [])]

    def bias(self, added: Node, value: str) -> str:
        """The vector that is added to the value; "" where it is something else."""
        others = [name for name in added.inputs if name != value]
        return others[0] if len(others) == 1 and others[0] in self._vectors else ""


def _product(node: Node, graph: _Graph) -> Node:
    gelu = graph.user(node, "Gelu")
    if gelu and not gelu.attributes:
        node = replace(node, outputs=graph.take(gelu), attributes=(int_attribute("gelu", 1),))
    rounding = _rounding(node, graph)
    if not rounding:
        return node
    inputs = (*node.inputs[:4], rounding.inputs[1], *node.inputs[4:])
    return replace(node, kind="Int8ProductRounded", inputs=inputs, outputs=graph.take(rounding))


def _attention(node: Node, graph: _Graph) -> Node:
    (q, k, v), q_bias, mixed_bias = node.inputs, "", ""
    added = graph.maker(q, "Add")
    if added:
        before = next((name for name in added.inputs if graph.bias(added, name)), "")
        if before:
            q, q_bias = before, graph.bias(added, before)
    split = graph.maker(q, "Split")
    if split and split.outputs == (q, k, v) and all(graph.maker(name, "Split") for name in (k, v)):
        q, k, v = split.inputs[0], "", ""
    behind = graph.user(node, "Add")
    if behind and graph.bias(behind, node.outputs[0]):
        mixed_bias = graph.bias(behind, node.outputs[0])
        node = replace(node, outputs=graph.take(behind))
    node = replace(node, inputs=(q, k, v, q_bias, mixed_bias))
    rounding = _rounding(node, graph)
    if not rounding:
        return node
    inputs = (*node.inputs, rounding.inputs[1])
    return replace(node, kind="AttentionRounded", inputs=inputs, outputs=graph.take(rounding))


def _addition(node: Node, graph: _Graph) -> Node:
    """With the normalization of its sum, where it has one."""
    norms = [user for user in graph.users(node) if user and user.kind == "LayerNormalization"]
    if len(norms) != 1 or norms[0].inputs[0] != node.outputs[0]:
        return node
    alone = len(graph.users(node)) == 1
    graph.take(norms[0])
    return _norm_of(norms[0], node.inputs, "" if alone else node.outputs[0], graph)


def _norm(node: Node, graph: _Graph) -> Node:
    return _norm_of(node, (node.inputs[0], ""), "", graph)


def _norm_of(node: Node, added: Sequence[str], total: str, graph: _Graph) -> Node:
    """Over the last axis, as every graph of ours has it."""
    users = graph.users(node)
    rounding = next((user for user in users if user and _rounds(user)), None)
    y = "" if rounding and len(users) == 1 else node.outputs[0]
    inputs: tuple[str, ...] = (*added, *node.inputs[1:3])
    outputs: tuple[str, ...] = (total, y)
    if rounding:
        inputs, outputs = (*inputs, rounding.inputs[1]), (*outputs, *graph.take(rounding))
    epsilon = float_attribute("epsilon", node.float_of("epsilon", 1e-5))
    return Node("LayerNorm", inputs, outputs, OURS, node.name, (epsilon,))


def _rounding(node: Node, graph: _Graph) -> Node | None:
    rounding = graph.user(node, "QuantizeLinear")
    return rounding if rounding and _rounds(rounding) else None


def _rounds(node: Node) -> bool:
    return node.kind == "QuantizeLinear" and node.inputs[2] == ZERO


def _itself(node: Node, graph: _Graph) -> Node:
    return node


_JOINS = {
    (OURS, "Int8Product"): _product,
    (OURS, "Attention"): _attention,
    ("", "Add"): _addition,
    ("", "LayerNormalization"): _norm,
}
