"""What our operators take in of the nodes around them, as a graph is loaded.

    nodes = joined(nodes, outputs, vectors)

An int8 product takes in the GELU and the rounding behind it; an attention the bias of its queries, the split
of a joined product that they, keys and values come from, and the bias and the rounding behind it. Knows
nothing of bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from llamavid.runtime.onnx_nodes import Node, int_attribute

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
    new: list[Node] = []
    taken: set[str] = set()  # values whose nodes were taken in, and those are passed over
    for node in nodes:
        if node.outputs[0] in taken:
            continue
        if node.domain == OURS:
            join = _product if node.kind == "Int8Product" else _attention
            node = join(node, graph)
            taken.update(node.outputs)
        new.append(node)
    return new


class _Graph:
    """Who makes a value, and who alone takes it."""

    def __init__(self, nodes: Sequence[Node], outputs: Collection[str], vectors: Collection[str]) -> None:
        self._outputs, self._vectors = outputs, vectors
        self._makers = {value: node for node in nodes for value in node.outputs}
        self._users: dict[str, list[Node]] = {}
        for node in nodes:
            for value in node.inputs:
                self._users.setdefault(value, []).append(node)

    def maker(self, value: str, kind: str) -> Node | None:
        """Where it is of that kind, and its value goes to one node alone."""
        node = self._makers.get(value)
        return node if node and node.kind == kind and len(self._users[value]) == 1 else None

    def user(self, node: Node, kind: str) -> Node | None:
        """Who alone takes what the node gives, if it is of that kind."""
        (value,) = node.outputs
        users = [] if value in self._outputs else self._users[value]
        return users[0] if len(users) == 1 and users[0].kind == kind else None

    def bias(self, added: Node, value: str) -> str:
        """The vector that is added to the value; "" where it is something else."""
        others = [name for name in added.inputs if name != value]
        return others[0] if len(others) == 1 and others[0] in self._vectors else ""


def _product(node: Node, graph: _Graph) -> Node:
    gelu = graph.user(node, "Gelu")
    if gelu and not gelu.attributes:
        node = replace(node, outputs=gelu.outputs, attributes=(int_attribute("gelu", 1),))
    rounding = _rounding(node, graph)
    if not rounding:
        return node
    inputs = (*node.inputs[:4], rounding.inputs[1], *node.inputs[4:])
    return replace(node, kind="Int8ProductRounded", inputs=inputs, outputs=rounding.outputs)


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
        node = replace(node, outputs=behind.outputs)
    node = replace(node, inputs=(q, k, v, q_bias, mixed_bias))
    rounding = _rounding(node, graph)
    if not rounding:
        return node
    inputs = (*node.inputs, rounding.inputs[1])
    return replace(node, kind="AttentionRounded", inputs=inputs, outputs=rounding.outputs)


def _rounding(node: Node, graph: _Graph) -> Node | None:
    rounding = graph.user(node, "QuantizeLinear")
    return rounding if rounding and rounding.inputs[2] == ZERO else None
