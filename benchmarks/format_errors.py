"""What each format, observer and migration changes in the output of each linear layer, at real dimensions.

Watches a checkpoint part by part, as calibration does, and computes every linear layer's product of a
sample of its input rows twice: exactly, and with weights and input rounded. An error is the norm of the
difference over the norm of the exact product. Output channels do not know of one another in any format, so
at most `OUTPUTS` of each layer stand for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamavid.calibration.histogram import Histogram
from llamavid.calibration.inputs import Input
from llamavid.calibration.looks import FirstLook, SecondLook
from llamavid.calibration.material import Material
from llamavid.calibration.migration import chosen_divisor
from llamavid.calibration.observed import Seen
from llamavid.calibration.observers import Observer, step
from llamavid.calibration.options import CalibrationOptions
from llamavid.calibration.visits import Opened, State, Visit, visits
from llamavid.formats.eight_bits import EightBits
from llamavid.formats.int4 import BLOCK_SIZES
from llamavid.formats.matrices import rounded_matrix
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.rounded import on_grid
from llamavid.model.watching import Watcher, watched

OUTPUTS = 512
SEARCHED_BLOCK = 32  # whose vector serves all blocks: a search takes seconds a layer
INT4_WAYS = ("nearest", "clipped", "migrated")

Array = npt.NDArray[np.float32]
# Error by what was done: "int8 mse", "int8 mse, migrated", "int4 32 clipped".
Errors = dict[str, float]


@torch.inference_mode()
def module_errors(
    checkpoint: Checkpoint, material: Material, on_part: Callable[[str], None]
) -> Iterator[tuple[str, str, Errors]]:
    """Graph, linear layer and its errors, in the order of the model; one part in memory at a time."""
    options = CalibrationOptions(frame_format="int8", llm_format="int8")
    state: State = [torch.from_numpy(material.pixels())]
    for visit in visits(checkpoint, material, options):
        on_part(visit.name)
        opened = visit.open()
        energies = {entering.name: _energies(opened, entering) for entering in visit.inputs}
        look = FirstLook(visit.graph, visit.inputs, energies)
        leaving = _run(opened, state, look)
        seen = look.seen() if visit.inputs else []
        migrated = {format: _migrated(visit, opened, seen, energies, state, format) for format in EightBits}
        for entering, one in zip(visit.inputs, seen, strict=True):
            for reader, errors in _input_errors(opened, entering, one, migrated).items():
                yield visit.graph, reader, errors
        state = leaving


def _run(opened: Opened, state: State, watcher: Watcher) -> State:
    with ExitStack() as stack:
        for name, module in opened.modules.items():
            stack.enter_context(watched(module, name, watcher))
        return opened.run(state)


def _energies(opened: Opened, entering: Input) -> Tensor:
    """float64 [K]: what the weights of each channel weigh (Note [Weights] of the histogram)."""
    weights = [opened.weight(f"{reader}.weight") for reader in entering.readers]
    return torch.stack([weight.square().sum(0, dtype=torch.float64) for weight in weights]).sum(0)


# Migration: a vector of each input that can be divided, and what is then seen of it

Migrated = dict[str, tuple[Array, Histogram]]


def _migrated(
    visit: Visit,
    opened: Opened,
    seen: list[Seen],
    energies: dict[str, Tensor],
    state: State,
    format: EightBits,
) -> Migrated:
    divisors = {}
    for entering, one in zip(visit.inputs, seen, strict=True):
        divisor = _divisor(opened, entering, one, format.value, None)
        if divisor is not None:
            divisors[entering.name] = divisor
    if not divisors:
        return {}
    squares = {name: torch.from_numpy(divisor).double().square() for name, divisor in divisors.items()}
    look = SecondLook(divisors, {name: energies[name] * square for name, square in squares.items()})
    _run(opened, state, look)
    return {name: (divisor, look.histograms[name]) for name, divisor in divisors.items()}


def _divisor(opened: Opened, entering: Input, one: Seen, format: str, block: int | None) -> Array | None:
    if not entering.divided:
        return None
    weights = [opened.weight(f"{reader}.weight").numpy() for reader in entering.readers]
    return chosen_divisor(one.sample, one.channels, weights, format, block=block)


# Errors


def _input_errors(
    opened: Opened, entering: Input, one: Seen, migrated: dict[EightBits, Migrated]
) -> dict[str, Errors]:
    """Of every layer that reads it."""
    found: dict[str, Errors] = {}
    by_block = _divisor(opened, entering, one, "int4", SEARCHED_BLOCK)
    for reader in entering.readers:
        weight = opened.weight(f"{reader}.weight").numpy()
        weight = weight[:: -(-len(weight) // OUTPUTS)]
        errors: Errors = {}
        for format in EightBits:
            errors |= _eight_bit_errors(one.sample, weight, one.histogram, None, format, "")
            if entering.divided:
                # Where no vector was worth it the layer stays as it is.
                divisor, histogram = migrated[format].get(entering.name, (None, one.histogram))
                errors |= _eight_bit_errors(one.sample, weight, histogram, divisor, format, ", migrated")
        errors |= _int4_errors(one, weight, by_block, divided=bool(entering.divided))
        found[reader] = errors
    return found


def _eight_bit_errors(
    sample: Array, weight: Array, histogram: Histogram, divisor: Array | None, format: EightBits, how: str
) -> Errors:
    exact = sample @ weight.T
    if divisor is not None:
        sample, weight = sample / divisor, weight * divisor
    matrix = rounded_matrix(weight.T, format.value)
    errors = {}
    for observer in Observer:
        x = on_grid(torch.from_numpy(sample), step(observer, histogram, format).scale, format)
        errors[f"{format.value} {observer.value}{how}"] = _error(x.numpy() @ matrix, exact)
    return errors


def _int4_errors(one: Seen, weight: Array, divisor: Array | None, *, divided: bool) -> Errors:
    exact, errors = one.sample @ weight.T, {}
    importance = one.channels.mean_square.astype(np.float32)
    for block in BLOCK_SIZES:
        nearest = rounded_matrix(weight.T, "int4", block=block)
        clipped = rounded_matrix(weight.T, "int4", block=block, importance=importance)
        errors[f"int4 {block} nearest"] = _error(one.sample @ nearest, exact)
        errors[f"int4 {block} clipped"] = _error(one.sample @ clipped, exact)
        if divided:
            vector = np.ones(weight.shape[1], np.float32) if divisor is None else divisor
            matrix = rounded_matrix(
                (weight * vector).T, "int4", block=block, importance=importance / vector**2
            )
            errors[f"int4 {block} migrated"] = _error((one.sample / vector) @ matrix, exact)
    return errors


def _error(found: Array, exact: Array) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
