"""From a checkpoint to the language model's three graphs and the one weight file that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamavid.bundle import GraphEntry
from llamavid.calibrated import GraphCalibration
from llamavid.contract import DType, Lowering, language_contract
from llamavid.export.builder import GraphBuilder
from llamavid.export.emulation import EmulatedBuilder
from llamavid.export.frame_types import reader
from llamavid.export.language import GRAPH, OPSET_OF, write_language
from llamavid.export.layers import Layers
from llamavid.export.precision import Precision
from llamavid.export.rewrites import PAYING, Rewrites
from llamavid.export.weights import WeightFile
from llamavid.model.checkpoint import Checkpoint

LANGUAGE_WEIGHTS = "llm.onnx.data"
TENSORRT = (Lowering.STATIC, Lowering.PRIMITIVE)
EMULATED = ".emulated"  # behind a graph's name

OnLayer = Callable[[str, int, int], None]  # what, layers done, of how many


def write_language_graphs(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    *,
    calibration: GraphCalibration | None = None,
    rewrites: Rewrites = PAYING,
    on_layer: OnLayer = lambda what, done, total: None,
) -> dict[str, GraphEntry]:
    """Writes every lowering into `folder`; their entries by name.

    `precision` is the bundle's. What one lowering stored, the next neither reads nor writes. In bfloat16
    there are beside them, to be compared and then removed, NAME.emulated: ONNX Runtime's CPU has no kernels.
    """
    graphs = {}
    with WeightFile(folder / LANGUAGE_WEIGHTS) as weights:
        for lowering in Lowering:
            typed = precision_for(lowering, precision)
            graphs[GRAPH[lowering]] = _write(
                checkpoint, weights, lowering, typed, calibration, rewrites, on_layer
            )
        for lowering in TENSORRT if precision.compute is DType.BFLOAT16 else ():
            graphs[f"{GRAPH[lowering]}{EMULATED}"] = _write(
                checkpoint, weights, lowering, precision, calibration, rewrites, on_layer, emulated=True
            )
    return graphs


def precision_for(lowering: Lowering, precision: Precision) -> Precision:
    """One bundle's precision by what runs the graph.

    int4 and int8 are float32 in between for ONNX Runtime's CPU kernels, and float16 for TensorRT's; int8's
    scales are exact in both, so that the levels are the same. bfloat16 is that of the weights alone for
    ONNX Runtime, whose CPU knows no more of it than to widen it.
    """
    if lowering in TENSORRT:
        precision = replace(precision, cache=None)
    if precision.rounds and lowering in TENSORRT:
        return replace(precision, compute=DType.FLOAT16)
    if precision.compute is DType.BFLOAT16 and lowering not in TENSORRT:
        return replace(precision, compute=DType.FLOAT32, stored=DType.BFLOAT16)
    return precision


def _write(
    checkpoint: Checkpoint,
    weights: WeightFile,
    lowering: Lowering,
    precision: Precision,
    calibration: GraphCalibration | None,
    rewrites: Rewrites,
    on_layer: OnLayer,
    *,
    emulated: bool = False,
) -> GraphEntry:
    name, language = GRAPH[lowering], checkpoint.config.language
    compute = DType.FLOAT32 if emulated else precision.compute
    contract = language_contract(language, compute, lowering, cache=precision.cache)
    builder = EmulatedBuilder if emulated else GraphBuilder
    file = f"{name}{EMULATED}" if emulated else name
    with builder(file, contract, weights.file.parent, opset=OPSET_OF[lowering], weights=weights) as g:
        read = reader(checkpoint, "language.", calibration)
        write_language(
            Layers(g, read, precision, calibration=calibration, rewrites=rewrites),
            language,
            lowering,
            on_layer=lambda i: on_layer(f"write {file}", i + 1, language.layers),
        )
        return GraphEntry(g.save().name, precision.name, contract, weights.file.name)
