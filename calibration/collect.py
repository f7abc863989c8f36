"""Watches a model on frames and questions, one block or layer in memory at a time.

    found = collect(checkpoint, material, folder, CalibrationOptions())
    found.graphs["vision"].observed["blocks.3.mlp.fc1"].histogram

Every part is gone through once for figures of its inputs; then what to migrate in it is chosen; and where
anything is, once more for the magnitudes that the rounding will meet. What was seen lies in
`folder/observed`, and an interrupted run goes on after the last part that was finished (`run_folder`). In
float32.

Memory: one block's weights, what enters and leaves it for all frames (EVA-g: 1.4 MB a frame each; Vicuna-7B:
16 kB a token each), what is inside it for one batch, and 2 MB an input of samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamavid.calibration.inputs import Input
from llamavid.calibration.looks import FirstLook, SecondLook
from llamavid.calibration.material import Material
from llamavid.calibration.migration import chosen_divisor
from llamavid.calibration.observed import (
    Arrays,
    Cached,
    Observed,
    Seen,
    pack_prompts,
    pack_seen,
    unpack_cached,
    unpack_prompts,
    unpack_seen,
)
from llamavid.calibration.options import LANGUAGE_GRAPH, CalibrationOptions
from llamavid.calibration.prompts import prompt_ids
from llamavid.calibration.run_folder import RunFolder, last_before
from llamavid.calibration.visits import Opened, State, Visit, visits
from llamavid.errors import UsageError
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.fingerprint import fingerprint
from llamavid.model.watching import Watcher, require_numbers, watched
from llamavid.scales import Migration

OBSERVED = "observed"
PROMPTS = 8  # that are kept, to measure errors on
_PROMPTING = "context"  # what leaves that part are prompts
_FORMAT = 2  # of what lies in that folder; a run of another one is refused

Array = npt.NDArray[np.float32]
OnProgress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, eq=False)
class CollectedGraph:
    """Of one graph.

    Args:
        block: of int4.
        observed: by module, in the order of the model.
        migrations: with names of `vectors`.
        vectors: float32 [K].
        cache, migrated_cache, keys, values: of the language model, as `GraphScales` has them.
    """

    format: str
    block: int | None
    observed: dict[str, Observed]
    migrations: tuple[Migration, ...]
    vectors: dict[str, Array]
    cache: dict[str, float]
    migrated_cache: dict[str, float]
    keys: dict[str, float]
    values: dict[str, float]


@dataclass(frozen=True, eq=False)
class Collected:
    """Everything; the graphs that get a format, in the order of the model."""

    checkpoint: str  # fingerprint
    clips: str  # digest of the material
    frames: int
    graphs: dict[str, CollectedGraph]
    prompts: tuple[Array, ...]  # some that the language model was watched with, embeddings [1, T, D]


def quiet(what: str, done: int, total: int, note: str = "") -> None:
    """Progress that nobody wants."""


@torch.inference_mode()
def collect(
    checkpoint: Checkpoint,
    material: Material,
    folder: Path,
    options: CalibrationOptions,
    *,
    replace: bool = False,
    on_progress: OnProgress = quiet,
) -> Collected:
    """Goes through the model, or on with it.

    Args:
        folder: where `observed/` lies or is made.
        replace: throw away what another run left there.
        on_progress: called with what is done, how many parts are, of how many, and which one is next.

    Raises:
        UsageError: there is no frame.
        PromptError: a prompt is longer than the language model reads.
        CheckpointError: an activation is not a number.
        ScalesError: an activation never varies; the folder is of another run, or cannot be written.
    """
    if not material.frames:
        raise UsageError("no frame to watch", expected="at least one", next_step="Name more clips.")
    if LANGUAGE_GRAPH in options.graphs:
        prompt_ids(checkpoint, material, template=options.template)  # too long a prompt: not after an hour
    identity = _identity(checkpoint, material, options)
    run = RunFolder(folder / OBSERVED, identity, replace=replace)
    parts = visits(checkpoint, material, options)
    giving = [number for number, visit in enumerate(parts) if visit.gives]
    first = run.first_unfinished([visit.name for visit in parts], giving)
    if first < len(parts):
        state = _state(run, material, first, giving)
    for number, visit in enumerate(parts[first:], first):
        on_progress("watch", number, len(parts), visit.name)
        seen, cached, leaving = _visited(visit, state, options)
        needed = visit.gives and number < len(parts) - 1
        arrays = pack_seen(seen, cached) | (_prompts(leaving) if visit.name == _PROMPTING else {})
        run.finish(visit.name, arrays, number, _arrays(leaving) if needed else None)
        state = leaving
    run.complete()
    on_progress("watch", len(parts), len(parts), "")
    graphs = {graph: _graph(run, parts, graph, options) for graph in options.graphs}
    return Collected(
        identity["checkpoint"],
        identity["clips or questions"],
        material.frames,
        graphs,
        unpack_prompts(run.seen(_PROMPTING)),
    )


def _identity(checkpoint: Checkpoint, material: Material, options: CalibrationOptions) -> dict[str, Any]:
    """All that what is seen depends on, under the words by which a person knows it."""
    return {
        "version of calibration": _FORMAT,
        "checkpoint": fingerprint(checkpoint),
        "clips or questions": material.digest,
        "frames of each clip": list(material.lengths),
        "formats": {graph: options.format_of(graph) for graph in options.graphs},
        "int4 block": {graph: options.block_of(graph) for graph in options.graphs},
        "migration": options.migrate,
        "template": options.template if LANGUAGE_GRAPH in options.graphs else None,
    }


def _state(run: RunFolder, material: Material, first: int, giving: Sequence[int]) -> State:
    """What enters part `first`."""
    if first == 0:
        return [torch.from_numpy(material.pixels())]
    return [torch.from_numpy(array) for array in run.activations(last_before(first, giving))]


def _prompts(state: State) -> Arrays:
    """Some, evenly spread."""
    count = min(PROMPTS, len(state))
    return pack_prompts([state[index * len(state) // count].numpy() for index in range(count)])


def _arrays(state: State) -> list[Array]:
    return [tensor.numpy() for tensor in state]


def _visited(
    visit: Visit, state: State, options: CalibrationOptions
) -> tuple[list[Seen], dict[str, Cached], State]:
    """What was seen of a part's inputs and caches, and what leaves it."""
    opened, rounds_inputs = visit.open(), options.format_of(visit.graph) != "int4"
    look = FirstLook(visit.graph, visit.inputs, _energies(visit, opened, {}) if rounds_inputs else {})
    leaving = _run(opened, state, look if visit.inputs else None)
    for tensor in leaving:
        require_numbers(float(tensor.abs().amax()), f"what leaves {visit.name}")
    seen = look.seen()
    if not options.migrate:
        return seen, look.cached, leaving
    divisors = _divisors(visit, opened, seen, options)
    if not divisors:
        return seen, look.cached, leaving
    histograms = {}
    if rounds_inputs:
        again = SecondLook(divisors, _energies(visit, opened, divisors))
        _run(opened, state, again)
        histograms = again.histograms
    seen = [
        dataclasses.replace(
            one, divisor=divisors.get(one.name), histogram=histograms.get(one.name, one.histogram)
        )
        for one in seen
    ]
    return seen, look.cached, leaving


def _run(opened: Opened, state: State, watcher: Watcher | None) -> State:
    with ExitStack() as stack:
        for name, module in opened.modules.items():
            if watcher:
                stack.enter_context(watched(module, name, watcher))
        return opened.run(state)


def _energies(visit: Visit, opened: Opened, divisors: Mapping[str, Array]) -> dict[str, Tensor]:
    """float64 [K] of every input: the squares of all weights that read a channel, added up."""
    found = {}
    for entering in visit.inputs:
        weights = [opened.weight(f"{reader}.weight") for reader in entering.readers]
        squares = torch.stack([weight.square().sum(0, dtype=torch.float64) for weight in weights]).sum(0)
        divisor = divisors.get(entering.name)
        factor = 1.0 if divisor is None else torch.from_numpy(divisor).double().square()
        found[entering.name] = squares * factor
    return found


def _divisors(
    visit: Visit, opened: Opened, seen: Sequence[Seen], options: CalibrationOptions
) -> dict[str, Array]:
    """By input; of those that are worth it."""
    format, block, found = options.format_of(visit.graph), options.block_of(visit.graph), {}
    for entering, one in zip(visit.inputs, seen, strict=True):
        if entering.divided:
            weights = [opened.weight(f"{reader}.weight").numpy() for reader in entering.readers]
            divisor = chosen_divisor(one.sample, one.channels, weights, format, block=block)
            if divisor is not None:
                found[entering.name] = divisor
    return found


def _graph(run: RunFolder, parts: Sequence[Visit], graph: str, options: CalibrationOptions) -> CollectedGraph:
    """From the files of all its parts."""
    observed: dict[str, Observed] = {}
    migrations: list[Migration] = []
    vectors: dict[str, Array] = {}
    cached: dict[str, Cached] = {}
    for visit in parts:
        if visit.graph == graph and visit.inputs:
            arrays = run.seen(visit.name)
            cached |= unpack_cached(arrays)
            for entering, seen in zip(
                visit.inputs, unpack_seen(arrays, [one.readers for one in visit.inputs]), strict=True
            ):
                observed |= seen.observed(graph)
                if seen.divisor is not None:
                    migrations.append(_migration(graph, entering))
                    vectors[migrations[-1].vector] = seen.divisor
    divisors = {name: observed[f"{name}.o_proj"].divisor for name in cached}
    return CollectedGraph(
        options.format_of(graph),
        options.block_of(graph),
        observed,
        tuple(migrations),
        vectors,
        {name: one.largest() for name, one in cached.items()},
        {name: one.largest(divisors[name]) for name, one in cached.items() if divisors[name] is not None},
        {name: one.key for name, one in cached.items()},
        {name: one.largest_value(divisors[name]) for name, one in cached.items()},
    )


def _migration(graph: str, entering: Input) -> Migration:
    return Migration(f"{graph}.{entering.name}", entering.divided, entering.readers)
