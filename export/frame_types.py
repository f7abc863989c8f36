"""The three frame graphs of a bundle: what types the data give them, and their files.

Takes a precision, scales and a scan; gives a plan a graph, and writes the graphs by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamavid.bundle import GraphEntry
from llamavid.calibrated import Calibration, GraphCalibration, load_calibration
from llamavid.contract import DType, content_contract, context_contract, vision_contract
from llamavid.errors import ScalesError, UsageError
from llamavid.export.activations import Activations, scales_from
from llamavid.export.builder import GraphBuilder
from llamavid.export.graphs import write_content, write_context, write_vision
from llamavid.export.layers import Array, Layers
from llamavid.export.precision import FP32, Precision
from llamavid.export.rewrites import PAYING, Rewrites, applicable
from llamavid.export.type_plan import CAREFUL, TypePlan, features_type, plan_from
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.fingerprint import fingerprint
from llamavid.scales import AGAIN, GraphScales

GRAPH_PREFIX = {"vision": "vision.", "content": "compressor.", "context": ""}  # a graph's names -> ours


@dataclass(frozen=True)
class FrameTypes:
    """What is decided before the first node is written."""

    precision: Precision
    plans: Mapping[str, TypePlan] = field(default_factory=dict)  # by graph; one without a plan is careful
    calibration: Calibration | None = None
    features: DType | None = None  # of the encoder's features at a boundary; None: as the rest of it
    rewrites: Rewrites = PAYING  # as far as the precision allows


CAREFUL_FP32 = FrameTypes(FP32)


def frame_types(
    checkpoint: Checkpoint,
    precision: Precision,
    *,
    scales: Path | None,
    seen: Activations | None,
    rewrites: Rewrites = PAYING,
) -> FrameTypes:
    """Decides.

    Raises:
        UsageError: the precision needs scales, and there are neither scales nor a scan.
        ScalesError: the scales are damaged, or of another checkpoint or format.
    """
    chosen = _calibration(checkpoint, precision, scales, seen)
    if seen is None:
        return FrameTypes(precision, calibration=chosen, rewrites=rewrites)
    return FrameTypes(
        precision,
        {graph: plan_from(values, precision.compute) for graph, values in seen.graphs.items()},
        chosen,
        features_type(seen, f"blocks.{checkpoint.config.vision.depth - 1}.mlp", precision.compute),
        rewrites,
    )


def write_frame_graphs(
    checkpoint: Checkpoint,
    folder: Path,
    types: FrameTypes,
    *,
    builder: type[GraphBuilder] = GraphBuilder,
    on_file: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, GraphEntry]:
    """Writes vision, content and context into `folder`; their entries by name."""
    writers = {
        "vision": (vision_contract, write_vision),
        "content": (content_contract, write_content),
        "context": (context_contract, write_context),
    }
    config, precision = checkpoint.config, types.precision
    boundary = DType.FLOAT32 if builder.emulates else precision.boundary
    features = boundary if builder.emulates else types.features
    graphs, rewrites = {}, applicable(types.rewrites, precision)
    for index, (name, (contract_of, write)) in enumerate(writers.items()):
        on_file(f"write {name}", index, len(writers))
        contract = contract_of(config, boundary, features)
        calibration = types.calibration.graph(name) if types.calibration else None
        read = reader(checkpoint, GRAPH_PREFIX[name], calibration)
        with builder(name, contract, folder) as g:
            plan = types.plans.get(name, CAREFUL)
            write(Layers(g, read, precision, plan, calibration, rewrites), config)
            graphs[name] = GraphEntry(g.save().name, precision.name, contract)
    return graphs


def reader(
    checkpoint: Checkpoint, prefix: str, calibration: GraphCalibration | None = None
) -> Callable[[str], Array]:
    """Gives the weights of one part, float32, by the names that its modules have; migrated, if so decided."""

    def read(name: str) -> Array:
        tensor = checkpoint.read(prefix + name).numpy()
        return calibration.migrated(name, tensor) if calibration else tensor

    return read


def opened_calibration(checkpoint: Checkpoint, scales: Path) -> Calibration:
    """Raises `ScalesError` when it is damaged, of another checkpoint, or names what that one has not."""
    calibration = load_calibration(scales)
    calibration.scales.require(checkpoint=fingerprint(checkpoint))
    for graph, found in calibration.scales.graphs.items():
        prefix = {**GRAPH_PREFIX, "llm": "language."}.get(graph)
        if prefix is None:
            raise ScalesError(f"{scales}: there is no graph {graph!r:.40}", next_step=AGAIN)
        for name in _named(found):
            if prefix + name not in checkpoint.tensors:
                raise ScalesError(f"{scales}: {name!r:.80} of graph {graph} does not exist", next_step=AGAIN)
    return calibration


def _named(scales: GraphScales) -> Iterator[str]:
    """Every tensor that they say something about."""
    multiplied = (module for migration in scales.migrations for module in migration.multiplied)
    for module in (*scales.steps, *scales.kept, *scales.importance, *multiplied):
        yield f"{module}.weight"
    yield from (divided.name for migration in scales.migrations for divided in migration.divided)


def _calibration(
    checkpoint: Checkpoint, precision: Precision, given: Path | None, seen: Activations | None
) -> Calibration | None:
    if not precision.rounds:
        return None
    if given:
        calibration = opened_calibration(checkpoint, given)
        for graph in GRAPH_PREFIX:
            calibration.scales.require_format(graph, precision.name, block=precision.int4_block)
        return calibration
    if not precision.eight_bits:
        return None
    if seen:
        return Calibration(scales_from(seen, precision.eight_bits), {})
    raise UsageError(
        f"precision {precision.name} without scales",
        expected="the ranges of activations",
        next_step="Pass --scales scales.json, or --scan CLIP to take them from a clip.",
    )
