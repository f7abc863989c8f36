"""From a checkpoint and clips to `scales.json`: watch, choose ranges, choose what is rounded, write.

    calibrated = calibrate(checkpoint, material, folder, CalibrationOptions())
    calibrated.calibration.scales.graphs["vision"].steps["blocks.3.mlp.fc1"].scale

    material --collect--> what entered each product --observers--> scales --sensitivity--> plan --> files

Takes frames that are decoded and prepared; `llamavid calibrate` brings them. The same inputs give the same
bytes, interrupted or not, on one machine: with another number of threads PyTorch's sums have another last
digit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamavid.calibrated import Calibration, save_calibration
from llamavid.calibration.choosing import chosen_plan
from llamavid.calibration.collect import OBSERVED, Collected, CollectedGraph, OnProgress, collect, quiet
from llamavid.calibration.material import Material
from llamavid.calibration.measuring import measuring_sample
from llamavid.calibration.modules import graph_modules
from llamavid.calibration.observed import Array
from llamavid.calibration.observers import Observer, step
from llamavid.calibration.options import CalibrationOptions
from llamavid.calibration.outputs import Chosen, Output
from llamavid.calibration.plan import FILE as PLAN
from llamavid.calibration.plan import Plan, load_plan, planned, remeasured, save_plan
from llamavid.calibration.run_folder import RUN
from llamavid.calibration.sensitivity import combined_errors, sensitivity
from llamavid.errors import ScalesError
from llamavid.formats.eight_bits import EightBits
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.fingerprint import fingerprint
from llamavid.scales import FORMAT_VERSION, GraphScales, Scales

SCALES = "scales.json"


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What was written, and what it was decided from."""

    calibration: Calibration
    collected: Collected
    plan: Plan


def calibrate(
    checkpoint: Checkpoint,
    material: Material,
    folder: Path,
    options: CalibrationOptions | None = None,
    *,
    replace: bool = False,
    on_progress: OnProgress = quiet,
) -> Calibrated:
    """Writes `scales.json`, `scales.npz` and `plan.json` into `folder`, which keeps the state of the run too.

    Args:
        replace: what another calibration left there.
        on_progress: called with what is done, how much of it, of how much, and a note.

    Raises:
        UsageError: there is no frame; a budget cannot be.
        PromptError: a clip and its question are longer than the language model reads.
        CheckpointError: an activation is not a number.
        ScalesError: an activation never varies; the folder holds another run, scales of unknown origin, or a
            plan that was edited; the plan that is to be followed is of something else.
    """
    options = options or CalibrationOptions()
    given = _given_plan(checkpoint, options)
    if not replace:
        _require_own(folder)
    collected = collect(checkpoint, material, folder, options, replace=replace, on_progress=on_progress)
    all_rounded = calibration_from(collected, options.observer)
    plan = _plan(checkpoint, material, folder, options, given, collected, all_rounded, on_progress)
    if not replace and options.plan is None:
        _require_unedited(folder / PLAN, plan)
    save_plan(plan, folder / PLAN)
    chosen = _only_used(Calibration(planned(all_rounded.scales, plan), all_rounded.vectors))
    return Calibrated(save_calibration(chosen, folder / SCALES), collected, plan)


def _given_plan(checkpoint: Checkpoint, options: CalibrationOptions) -> Plan | None:
    """Read before anything is watched: a mistake in it is told at once, not after an hour."""
    if options.plan is None:
        return None
    graphs = {
        graph: GraphScales(options.format_of(graph), block=options.block_of(graph))
        for graph in options.graphs
    }
    modules = graph_modules(checkpoint.config)
    return load_plan(options.plan, modules=modules, checkpoint=fingerprint(checkpoint), graphs=graphs)


def _require_own(folder: Path) -> None:
    """Scales without the state of a run may be of anything, and are not written over."""
    if (folder / SCALES).exists() and not (folder / OBSERVED / RUN).exists():
        raise ScalesError(
            f"{folder / SCALES} exists, and no {OBSERVED}/{RUN} tells what it was made from",
            next_step="Pass --replace to write over it, or choose another -o.",
        )


def calibration_from(collected: Collected, observer: Observer) -> Calibration:
    """Everything that was watched, rounded. The step of every input is the observer's."""
    vectors: dict[str, Array] = {}
    for name, graph in collected.graphs.items():
        vectors |= graph.vectors
        for module, vector in _importance(name, graph).items():
            vectors.setdefault(vector, graph.observed[module].importance)
    graphs = {name: _graph_scales(name, graph, observer) for name, graph in collected.graphs.items()}
    scales = Scales(
        FORMAT_VERSION, observer.value, collected.checkpoint, collected.clips, collected.frames, "", graphs
    )
    return Calibration(scales, vectors)


def _graph_scales(name: str, graph: CollectedGraph, observer: Observer) -> GraphScales:
    rounds_inputs = graph.format != "int4"
    format = EightBits(graph.format) if rounds_inputs else None
    return GraphScales(
        graph.format,
        steps={module: step(observer, one.histogram, format) for module, one in graph.observed.items()}
        if format
        else {},
        migrations=graph.migrations,
        block=graph.block,
        importance=_importance(name, graph),
        cache=graph.cache,
        migrated_cache=graph.migrated_cache,
        keys=graph.keys,
        values=graph.values,
    )


def _importance(name: str, graph: CollectedGraph) -> dict[str, str]:
    """Module -> name of its vector; what reads the same tensor shares one."""
    if graph.format != "int4":
        return {}
    owners: dict[int, str] = {}
    return {
        module: f"{name}.{owners.setdefault(id(one.channels), module)}.importance"
        for module, one in graph.observed.items()
    }


def _plan(
    checkpoint: Checkpoint,
    material: Material,
    folder: Path,
    options: CalibrationOptions,
    given: Plan | None,
    collected: Collected,
    calibration: Calibration,
    on_progress: OnProgress,
) -> Plan:
    """The one that is to be followed, measured; or one that is chosen."""
    modules = graph_modules(checkpoint.config)
    sample = measuring_sample(checkpoint.config, material, collected)

    def measure(chosen: Chosen) -> dict[Output, float]:
        return combined_errors(checkpoint, calibration, sample, chosen, on_progress=on_progress)

    if given:
        return remeasured(given, measure)
    found = sensitivity(checkpoint, calibration, sample, folder=folder, on_progress=on_progress)
    budgets = {Output.FRAME_TOKENS: options.frame_budget, Output.LOGITS: options.llm_budget}
    return chosen_plan(
        calibration.scales,
        modules,
        found,
        measure=measure,
        budgets={output: budget for output, budget in budgets.items() if budget is not None},
    )


def _require_unedited(file: Path, plan: Plan) -> None:
    """A plan that a person changed, or that other options made, is not written over."""
    if file.exists() and file.read_text(encoding="utf-8", errors="replace") != plan.to_json():
        raise ScalesError(
            f"{file} is another plan than these options give",
            next_step=f"Pass --plan {file} to follow it, --replace to write over it, or another -o.",
        )


def _only_used(calibration: Calibration) -> Calibration:
    """Without vectors that only kept modules had."""
    used = set(_vectors(calibration.scales))
    return dataclasses.replace(
        calibration, vectors={name: vector for name, vector in calibration.vectors.items() if name in used}
    )


def _vectors(scales: Scales) -> Iterator[str]:
    for graph in scales.graphs.values():
        yield from (migration.vector for migration in graph.migrations)
        yield from graph.importance.values()
