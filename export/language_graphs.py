"""From a checkpoint to the language model's three graphs and the one weight file that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamavid.bundle import GraphEntry
from llamavid.contract import DType, Lowering, language_contract
from llamavid.export.builder import GraphBuilder
from llamavid.export.frame_types import reader
from llamavid.export.language import GRAPH, OPSET_OF, write_language
from llamavid.export.layers import Layers
from llamavid.export.precision import Precision
from llamavid.export.weights import WeightFile
from llamavid.model.checkpoint import Checkpoint

LANGUAGE_WEIGHTS = "llm.onnx.data"


def write_language_graphs(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision,
    *,
    on_layer: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, GraphEntry]:
    """Writes every lowering into `folder`; their entries by name.

    `precision` is that of ONNX Runtime's. What one lowering stored, the next neither reads nor writes.
    """
    graphs = {}
    with WeightFile(folder / LANGUAGE_WEIGHTS) as weights:
        for lowering in Lowering:
            typed = precision_for(lowering, precision)
            graphs[GRAPH[lowering]] = _write(checkpoint, weights, lowering, typed, on_layer)
    return graphs


def precision_for(lowering: Lowering, precision: Precision) -> Precision:
    """int4 is float32 in between for ONNX Runtime's CPU kernels, and float16 for TensorRT's."""
    if precision.int4_block and lowering is not Lowering.ONNX_RUNTIME:
        return replace(precision, compute=DType.FLOAT16)
    return precision


def _write(
    checkpoint: Checkpoint,
    weights: WeightFile,
    lowering: Lowering,
    precision: Precision,
    on_layer: Callable[[str, int, int], None],
) -> GraphEntry:
    name, language = GRAPH[lowering], checkpoint.config.language
    contract = language_contract(language, precision.compute, lowering)
    with GraphBuilder(name, contract, weights.file.parent, opset=OPSET_OF[lowering], weights=weights) as g:
        write_language(
            Layers(g, reader(checkpoint, "language."), precision),
            language,
            lowering,
            on_layer=lambda i: on_layer(f"write {name}", i + 1, language.layers),
        )
        return GraphEntry(g.save().name, precision.name, contract, weights.file.name)
