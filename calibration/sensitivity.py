"""How much each module costs when it alone is rounded; and what several cost together.

    found = sensitivity(checkpoint, calibration, sample, folder=folder)
    combined_errors(checkpoint, calibration, sample, {"vision": ["blocks.3.mlp.fc1"]})

At EVA-g's size this is 156 variants of the encoder through half its blocks on average, so the sample is a few
frames. The same inputs give the same numbers, interrupted or not. What is kept by the scales is not measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamavid.calibrated import Calibration
from llamavid.calibration.branch_state import BranchState
from llamavid.calibration.modules import rounded_modules
from llamavid.calibration.outputs import Chosen, ModuleError, Output
from llamavid.calibration.variant_errors import Error, OnProgress, Sample, variant_errors
from llamavid.errors import ScalesError, UsageError
from llamavid.model.checkpoint import Checkpoint
from llamavid.replacing import replacing

FOLDER = "sensitivity"  # inside the calibration's own
_FORMAT_VERSION = 1
_SIZE_LIMIT = 16 << 20  # bytes of a result; a 7B model's are 30 kB


def quiet(what: str, done: int, total: int, note: str) -> None:
    """Shows no progress."""


def sensitivity(
    checkpoint: Checkpoint,
    calibration: Calibration,
    sample: Sample,
    *,
    folder: Path | None = None,
    on_progress: OnProgress = quiet,
) -> tuple[ModuleError, ...]:
    """The error of each module that the calibration rounds, in the order of the model.

    Args:
        sample: without sequences the language model is left out.
        folder: keeps what is done, so that an interrupted run goes on; a finished one is not run again.

    Raises:
        UsageError: there is no frame or no question.
        CheckpointError: the exact output is zero, or no number.
        ScalesError: a migration's vector does not fit, or the folder cannot be written.
    """
    modules = rounded_modules(checkpoint.config, calibration.scales.graphs)
    measured: list[ModuleError] = []
    for output in outputs_of([graph for graph, names in modules.items() if names], sample):
        chosen = [(graph, name) for graph in output.graphs for name in modules.get(graph, ())]
        errors = _kept_or_measured(output, checkpoint, calibration, sample, chosen, folder, on_progress)
        measured += [
            ModuleError(graph, name, error.relative, modules[graph][name].multiplications, error.divergence)
            for (graph, name), error in zip(chosen, errors, strict=True)
        ]
    return tuple(measured)


def combined_errors(
    checkpoint: Checkpoint,
    calibration: Calibration,
    sample: Sample,
    chosen: Chosen,
    *,
    on_progress: OnProgress = quiet,
) -> dict[Output, float]:
    """The relative error of each output with all of the chosen modules rounded at once.

    Where a graph is named and nothing of it is chosen, its output has the error 0 and is not run. Without
    sequences there are no logits.

    Raises: as `sensitivity`.
    """
    together = {graph: frozenset(modules) for graph, modules in chosen.items()}
    return {
        output: _together(output, checkpoint, calibration, sample, together, on_progress)
        for output in outputs_of(together, sample)
    }


def outputs_of(graphs: Collection[str], sample: Sample) -> list[Output]:
    """Those that the graphs make, and that the sample can tell of.

    Raises:
        UsageError: there is no frame or no question.
    """
    wanted = [output for output in Output if any(graph in graphs for graph in output.graphs)]
    if Output.FRAME_TOKENS in wanted and not (len(sample.pixels) and sample.questions):
        raise UsageError(
            f"{len(sample.pixels)} frames and {len(sample.questions)} questions",
            expected="at least one of each, to measure errors on",
        )
    return [output for output in wanted if output is not Output.LOGITS or sample.sequences]


def _together(
    output: Output,
    checkpoint: Checkpoint,
    calibration: Calibration,
    sample: Sample,
    chosen: Chosen,
    on_progress: OnProgress,
) -> float:
    if not any(chosen.get(graph) for graph in output.graphs):
        return 0.0
    (error,) = variant_errors(
        output, checkpoint, calibration, sample, [chosen], what="together", on_progress=on_progress
    )
    return error.relative


def _kept_or_measured(
    output: Output,
    checkpoint: Checkpoint,
    calibration: Calibration,
    sample: Sample,
    chosen: list[tuple[str, str]],
    folder: Path | None,
    on_progress: OnProgress,
) -> list[Error]:
    key = _key(output, calibration, sample, chosen)
    result = folder / FOLDER / f"{output.value}.json" if folder else None
    if result and (kept := _load(result, key, len(chosen))):
        return kept
    state = BranchState(result.with_suffix(".branches.npz"), key) if result else None
    errors = variant_errors(
        output,
        checkpoint,
        calibration,
        sample,
        [{graph: {name}} for graph, name in chosen],
        what="each module alone",
        on_progress=on_progress,
        state=state,
    )
    if result and state:
        _save(result, key, errors)
        state.remove()
    return errors


def _key(output: Output, calibration: Calibration, sample: Sample, chosen: list[tuple[str, str]]) -> str:
    """sha256 of all that the errors depend on; the scales name the checkpoint."""
    words = [_FORMAT_VERSION, output.value, chosen, sample.questions, torch.__version__]
    digest = hashlib.sha256(json.dumps([words, dataclasses.asdict(calibration.scales)]).encode())
    for name in sorted(calibration.vectors):
        digest.update(name.encode() + calibration.vectors[name].tobytes())
    for tensor in (sample.pixels, *sample.sequences):
        digest.update(
            f"{list(tensor.shape)}".encode() + np.ascontiguousarray(tensor.float().numpy()).tobytes()
        )
    return digest.hexdigest()


def _save(file: Path, key: str, errors: list[Error]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as beside:
            beside.write_text(json.dumps({"key": key, "errors": errors}), encoding="utf-8")
    except OSError as error:
        raise ScalesError(
            f"{file} cannot be written ({error.strerror})", next_step="Choose another place."
        ) from error


def _load(file: Path, key: str, count: int) -> list[Error] | None:
    """None: there is no result, or it is of other inputs, or damaged; it is then measured again."""
    try:
        if file.stat().st_size > _SIZE_LIMIT:
            return None
        found: Any = json.loads(file.read_bytes())
        if found["key"] != key or len(found["errors"]) != count:
            return None
        return [
            Error(float(relative), None if nats is None else float(nats))
            for relative, nats in found["errors"]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
