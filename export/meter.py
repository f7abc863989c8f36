"""The largest magnitudes of one graph, as `llamavid.model.watching` shows what passes through it."""

from __future__ import annotations

from torch import Tensor

from llamavid.model.watching import KINDS, require_numbers

_NOUNS = {
    "inputs": "what enters",
    "outputs": "what leaves",
    "operands": "an operand of",
    "scores": "a score of",
    "sums": "the residual sum after",
}


class Meter:
    """Keeps the largest magnitude of each kind and name."""

    kinds = KINDS

    def __init__(self, graph: str) -> None:
        self.graph = graph
        self.largest: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}

    def see(self, kind: str, name: str, values: Tensor) -> None:
        """Raises `CheckpointError` where float32 itself does not hold a value."""
        found = float(values.abs().amax())
        require_numbers(found, f"{_NOUNS[kind]} {name} of graph {self.graph}")
        self.largest[kind][name] = max(found, self.largest[kind].get(name, 0.0))
