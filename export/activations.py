"""activations.json: how large the frame networks' activations got on real frames, and what follows from it.

Made by `llamavid.export.scan`; names are those of modules, as in the graphs. Gives the report and the
scales of the simplest observer. Knows nothing about PyTorch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llamavid.errors import ScalesError
from llamavid.formats.eight_bits import EightBits
from llamavid.scales import FORMAT_VERSION as SCALES_VERSION
from llamavid.scales import GraphScales, Scales, Step

FORMAT_VERSION = 1
FILE = "activations.json"
FLOAT16_END = float(np.finfo(np.float16).max)  # 65504
CONVOLUTION = "patch_embed.proj"  # stays as it is: one product of pixels, 0.2 % of the encoder


@dataclass(frozen=True)
class GraphActivations:
    """Largest magnitudes of one graph, by module name."""

    inputs: dict[str, float]  # of a convolution or linear layer
    outputs: dict[str, float]  # what it gives, with its bias
    operands: dict[str, float]  # of an attention: queries, keys and values
    scores: dict[str, float]  # of an attention, before softmax
    sums: dict[str, float]  # residual sums, by the module that was added


@dataclass(frozen=True)
class Activations:
    """A whole scan."""

    format_version: int
    checkpoint: str  # fingerprint
    clips: str  # sha256 of the pixels
    frames: int
    graphs: dict[str, GraphActivations]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    graph: str
    name: str
    what: str  # a field of `GraphActivations`
    largest: float

    @property
    def headroom(self) -> float:
        """How many times larger it could be in float16; below 1 it is inf there."""
        return FLOAT16_END / self.largest if self.largest else float("inf")


def rows(seen: Activations) -> list[Row]:
    """Every figure, the largest first."""
    return sorted(_rows(seen), key=lambda row: -row.largest)


def _rows(seen: Activations) -> Iterator[Row]:
    for graph, values in seen.graphs.items():
        for field in dataclasses.fields(values):
            for name, largest in getattr(values, field.name).items():
                yield Row(graph, name, field.name, largest)


def table(found: list[Row]) -> str:
    """For people: a line a figure."""
    lines = [f"{'graph':8} {'layer':44} {'':9} {'largest':>10} {'headroom':>9}"]
    lines += [
        f"{row.graph:8} {row.name:44} {row.what:9} {row.largest:10.4g} {row.headroom:8.3g}x" for row in found
    ]
    return "\n".join(lines)


def scales_from(seen: Activations, format: EightBits) -> Scales:
    """The simplest observer: the last level stands for the largest magnitude that was seen.

    Raises:
        ScalesError: something was zero in every frame.
    """
    graphs = {}
    for graph, values in seen.graphs.items():
        linear = {name: largest for name, largest in values.inputs.items() if name != CONVOLUTION}
        dead = [name for name, largest in linear.items() if largest == 0]
        if dead:
            raise ScalesError(
                f"what enters {dead[0]} of graph {graph} is 0 in all {seen.frames} frames",
                expected="activations that vary",
                next_step="Scan clips that show something.",
            )
        steps = {name: Step(largest, largest / format.largest) for name, largest in linear.items()}
        graphs[graph] = GraphScales(format.value, steps)
    return Scales(
        SCALES_VERSION,
        "absolute maximum",
        seen.checkpoint,
        seen.clips,
        seen.frames,
        "",
        graphs,
    )
