"""Every graph of a checkpoint in a precision, written as `llamavid export` writes them, not compared.

    for written in every_graph(checkpoint, folder, "int8"):
        compiled(trt, written.graph, written.file, ...)

int8 and fp8 get steps of one size: whether a graph builds does not depend on their value. Used by the test
that builds them all on every commit, and by the benchmark that tells how long it takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamavid.calibrated import Calibration
from llamavid.contract import GraphContract, Lowering, language_contract
from llamavid.engines import Profile
from llamavid.export.builder import GraphBuilder
from llamavid.export.frame_types import GRAPH_PREFIX, FrameTypes, reader, write_frame_graphs
from llamavid.export.language import GRAPH, OPSET_OF, write_language
from llamavid.export.language_graphs import precision_for
from llamavid.export.layers import Layers
from llamavid.export.precision import Precision, frame_precision, language_precision
from llamavid.export.profiles import CACHE, Sizes, profiles_of
from llamavid.export.rewrites import PAYING
from llamavid.export.weights import WeightFile
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.random_weights import SIZES, TINY, Size
from llamavid.scales import FORMAT_VERSION, GraphScales, Scales, Step

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "fp8")
FRAME_GRAPHS = tuple(GRAPH_PREFIX)
LANGUAGE_GRAPHS = tuple(GRAPH[lowering] for lowering in (Lowering.STATIC, Lowering.PRIMITIVE))
GRAPHS = FRAME_GRAPHS + LANGUAGE_GRAPHS

# The 7B model's widths, two blocks and layers of each tower, and a vocabulary that tests can afford.
REAL = dataclasses.replace(
    SIZES["7b"],
    name="real",
    vision_depth=2,
    layers=2,
    text_layers=2,
    vocab=512,
    text_vocab=512,
    shard_bytes=1 << 40,
)
MODELS: dict[str, Size] = {"tiny": TINY, "real": REAL}


@dataclass(frozen=True)
class WrittenGraph:
    """One file, and what building it takes."""

    graph: str
    file: Path
    contract: GraphContract
    profiles: tuple[Profile, ...]
    fixed: dict[str, int]


def every_graph(checkpoint: Checkpoint, folder: Path, precision: str) -> Iterator[WrittenGraph]:
    """Frame graphs, then the language model's for TensorRT, each when it is written."""
    chosen = frame_precision(precision, compute=None, int4_block=32)
    types = FrameTypes(chosen, calibration=_calibration(checkpoint, chosen))
    for name, entry in write_frame_graphs(checkpoint, folder, types).items():
        profiles = profiles_of(entry.contract, checkpoint.config, Sizes())
        yield WrittenGraph(name, folder / entry.file, entry.contract, profiles, {})
    with WeightFile(folder / "llm.onnx.data") as weights:
        for lowering in (Lowering.STATIC, Lowering.PRIMITIVE):
            yield _language(checkpoint, weights, lowering, precision, types.calibration)


def _language(
    checkpoint: Checkpoint,
    weights: WeightFile,
    lowering: Lowering,
    precision: str,
    calibration: Calibration | None,
) -> WrittenGraph:
    language, name = checkpoint.config.language, GRAPH[lowering]
    typed = precision_for(lowering, language_precision(precision, int4_block=32))
    contract = language_contract(language, typed.compute, lowering)
    ranges = calibration.graph("llm") if calibration else None
    folder = weights.file.parent
    with GraphBuilder(name, contract, folder, opset=OPSET_OF[lowering], weights=weights) as g:
        read = reader(checkpoint, "language.")
        layers = Layers(g, read, typed, calibration=ranges, rewrites=PAYING)
        write_language(layers, language, lowering)
        file = g.save()
    static = lowering is Lowering.STATIC
    profiles = profiles_of(contract, checkpoint.config, Sizes(), static=static, one=True)
    fixed = {CACHE: profiles[0].largest["past.0.key"][2]} if static else {}
    return WrittenGraph(name, file, contract, profiles, fixed)


def _calibration(checkpoint: Checkpoint, precision: Precision) -> Calibration | None:
    """A step for every module there is."""
    if not precision.eight_bits:
        return None
    step = Step(8.0, 8.0 / precision.eight_bits.largest)
    prefixes = {**GRAPH_PREFIX, "llm": "language."}
    modules = [name.removesuffix(".weight") for name in checkpoint.tensors if name.endswith(".weight")]
    graphs = {
        graph: GraphScales(
            precision.name,
            {name.removeprefix(prefix): step for name in modules if name.startswith(prefix)},
        )
        for graph, prefix in prefixes.items()
    }
    anything = 64 * "0"
    return Calibration(Scales(FORMAT_VERSION, "none", anything, anything, 1, "", graphs), {})
