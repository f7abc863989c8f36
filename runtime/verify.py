"""Does what runs here answer like the model? The golden inputs through every stage, at every batch size.

    for compared in compare(read_golden(bundle), onnx_subject(bundle)):
        print(compared.row)

Takes a `Subject`: what runs the stages, ONNX Runtime or an engine set, and the sizes that it ships. Gives
rows of errors, passed or not. This comparison lives in the runtime and needs NumPy alone, because it is about
the very device that answers, which has no PyTorch. Its other half, on the workstation, is
`llamavid.export.verify`, which leaves the golden inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llamavid.bundle import ParityRow
from llamavid.contract import GraphContract
from llamavid.elements import as_elements, as_float32
from llamavid.engines import EngineSet, Profile
from llamavid.golden import Golden
from llamavid.parity import ENGINE_TOLERANCES, QUANTIZED, Tolerance, relative_errors, worst_row_errors

Array = npt.NDArray[Any]
Run = tuple[npt.NDArray[np.int64], dict[str, Array]]  # which golden frames, and the outputs for them

FRAME_STAGES = ("vision", "content", "context")
LANGUAGE_STAGE = "llm"
# Of what a stage may differ from PyTorch, the part that may depend on how many frames there are: the order of
# sums, and nothing else, changes with the batch.
_BATCH_PART = 0.5


@dataclass(frozen=True)
class Step:
    """The language model's cache is rolled back to `keep` tokens, then reads `rows` [1, T, D]."""

    keep: int
    rows: Array  # in the graph's type


class RunFrames(Protocol):
    """Runs one frame stage: inputs and outputs by the contract's names and types."""

    def __call__(self, stage: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]: ...


class RunLanguage(Protocol):
    """Runs steps through one cache of `capacity` tokens -> logits float32 [steps, V], after each."""

    def __call__(self, steps: Sequence[Step], capacity: int) -> Array: ...


@dataclass(frozen=True)
class Stage:
    """What one stage is.

    Args:
        sizes: of the frame stages, frames a run; of `llm`, tokens a run of the prefill. Rising.
    """

    graph: str  # by the bundle's manifest
    precision: str
    contract: GraphContract
    tolerance: Tolerance  # judged
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """What is compared. A stage that cannot run here is not in `stages`."""

    name: str  # "ONNX Runtime", or the target
    stages: Mapping[str, Stage]
    run_frames: RunFrames
    run_language: RunLanguage


@dataclass(frozen=True)
class Compared:
    """One line of the table; `row.graph` is the graph's name in the manifest."""

    stage: str
    size: int  # frames, or tokens of a prefill
    row: ParityRow


def compare(
    golden: Golden, subject: Subject, *, on_step: Callable[[str], None] = lambda what: None
) -> Iterator[Compared]:
    """Every line, passed or not."""
    for name in FRAME_STAGES:
        if name in subject.stages:
            for size, row in _frame_rows(golden, subject, name, on_step):
                yield Compared(name, size, row)
    if LANGUAGE_STAGE in subject.stages:
        for size, row in _language_rows(golden, subject, subject.stages[LANGUAGE_STAGE], on_step):
            yield Compared(LANGUAGE_STAGE, size, row)


class StepDecoder(Protocol):
    """The runtime's own decoders, of either kind."""

    def new_cache(self, tokens: int) -> Any: ...
    def prefill(self, cache: Any, sequence: Array) -> Array: ...
    def decode_one(self, cache: Any, embedding: Array) -> Array: ...


def read_steps(decoder: StepDecoder, steps: Sequence[Step], capacity: int) -> npt.NDArray[np.float32]:
    """What `RunLanguage` gives, by a decoder: a step of one token is decoded, others are prefilled."""
    cache = decoder.new_cache(capacity)
    logits = []
    for step in steps:
        cache.length = step.keep
        one = step.rows.shape[1] == 1
        logits.append(
            decoder.decode_one(cache, step.rows[0, 0]) if one else decoder.prefill(cache, step.rows)
        )
    return np.stack(logits).astype(np.float32, copy=False)


def stage_inputs(golden: Golden, contract: GraphContract, rows: npt.NDArray[np.int64]) -> dict[str, Array]:
    """Inputs of a frame stage for those golden frames."""
    inputs = {}
    for spec in contract.inputs:
        array = getattr(golden, spec.name)
        inputs[spec.name] = as_elements(array if spec.name == "question_ids" else array[rows], spec.dtype)
    return inputs


def prefill_inputs(golden: Golden, contract: GraphContract, capacity: int) -> dict[str, Array]:
    """Inputs of a language graph for the golden sequence's first chunk, over an empty cache."""
    tokens = int(golden.chunks[0])
    shapes = {
        spec.name: [capacity if dim == "cache" else int(dim) for dim in spec.dims]
        for spec in contract.inputs
        if spec.name.startswith("past.")
    }
    return {
        "inputs_embeds": as_elements(golden.sequence[:, :tokens], contract.spec("inputs_embeds").dtype),
        "total_length": np.asarray([tokens], np.int32),
        **{name: np.zeros(shape, contract.spec(name).dtype.numpy) for name, shape in shapes.items()},
    }


def engine_subject(engines: EngineSet, run_frames: RunFrames, run_language: RunLanguage) -> Subject:
    """An engine set, at the sizes of its profiles."""
    stages = {
        name: Stage(
            entry.graph,
            entry.precision,
            entry.contract,
            ENGINE_TOLERANCES[entry.precision],
            _shipped(name, entry.profiles),
        )
        for name, entry in engines.manifest.engines.items()
    }
    return Subject(engines.manifest.target, stages, run_frames, run_language)


def _shipped(stage: str, profiles: Sequence[Profile]) -> tuple[int, ...]:
    """Frames, or tokens of a prefill. A decode step is one token whatever its profile says."""
    name, axis = {"vision": ("pixels", 0), LANGUAGE_STAGE: ("inputs_embeds", 1)}.get(stage, ("features", 0))
    sizes: set[int] = set()
    for profile in profiles:
        shapes = (profile.smallest[name], profile.tuned[name], profile.largest[name])
        smallest, tuned, largest = (shape[axis] for shape in shapes)
        sizes |= set(sizes_of(smallest, tuned, largest))
    return tuple(sorted(sizes - ({1} if stage == LANGUAGE_STAGE else set())))


def sizes_of(smallest: int, tuned: int, largest: int) -> tuple[int, ...]:
    """Sizes to try of a profile: its three, and odd ones between, where a kernel has rests to deal with."""
    between = {(smallest + tuned) // 2 | 1, (tuned + largest) // 2 | 1}
    return tuple(sorted({smallest, tuned, largest} | {size for size in between if smallest < size < largest}))


def arrangements(frames: int, size: int) -> list[npt.NDArray[np.int64]]:
    """Which golden frame each of `size` rows is, for each run that it takes.

    Row i has the digits of i in base `frames`, one a run: so every two rows differ in one of the runs, and a
    row that is mixed with any other shows.
    """
    digits = 1
    while frames > 1 and frames**digits < size:
        digits += 1
    return [np.arange(size) // frames**digit % frames for digit in range(digits)]


def _frame_rows(
    golden: Golden, subject: Subject, name: str, on_step: Callable[[str], None]
) -> Iterator[tuple[int, ParityRow]]:
    stage = subject.stages[name]
    first, *others = stage.sizes
    on_step(f"{subject.name}: {name}, {_frames(first)}")
    alone = _each_frame(golden, subject, name)
    for row in _against_pytorch(
        golden, name, stage, [(np.arange(len(golden.pixels)), alone)], _frames(first)
    ):
        yield first, row
    for size in others:
        on_step(f"{subject.name}: {name}, {_frames(size)}")
        every = arrangements(len(golden.pixels), size)
        runs = [(rows, _run_frames(golden, subject, name, rows)) for rows in every]
        for row in _against_pytorch(golden, name, stage, runs, _frames(size)):
            yield size, row
        errors = _worst([(alone[output][rows], found[output]) for rows, found in runs for output in found])
        bound = Tolerance(_norm(stage) * _BATCH_PART, "sums in another order; nothing else may change")
        yield size, _row(stage, f"itself at {_frames(first)}, {_frames(size)}", errors, bound)


def _against_pytorch(
    golden: Golden, name: str, stage: Stage, runs: Sequence[Run], at: str
) -> Iterator[ParityRow]:
    """A row for each output."""
    for number, output in enumerate(runs[0][1]):
        errors = _worst([(golden.output(name, output)[rows], found[output]) for rows, found in runs])
        yield _row(
            stage, f"{_pytorch(stage)}, {at}" + (f" ({output})" if number else ""), errors, stage.tolerance
        )


def _worst(pairs: Sequence[tuple[Array, Array]]) -> Sequence[float]:
    """Errors of the worst row among all references and what was found for them; NaN, if any is."""
    return np.max([worst_row_errors(reference, found) for reference, found in pairs], axis=0).tolist()


def _each_frame(golden: Golden, subject: Subject, name: str) -> dict[str, Array]:
    """Outputs for each golden frame, at the smallest size that the stage has."""
    size = subject.stages[name].sizes[0]
    runs = [
        _run_frames(golden, subject, name, np.full(size, frame, np.int64))
        for frame in range(len(golden.pixels))
    ]
    return {output: np.concatenate([run[output][:1] for run in runs]) for output in runs[0]}


def _run_frames(golden: Golden, subject: Subject, name: str, rows: npt.NDArray[np.int64]) -> dict[str, Array]:
    contract = subject.stages[name].contract
    found = subject.run_frames(name, stage_inputs(golden, contract, rows))
    return {spec.name: as_float32(found[spec.name], spec.dtype) for spec in contract.outputs}


def _language_rows(
    golden: Golden, subject: Subject, stage: Stage, on_step: Callable[[str], None]
) -> Iterator[tuple[int, ParityRow]]:
    on_step(f"{subject.name}: language model")
    rows = as_elements(golden.sequence, stage.contract.spec("inputs_embeds").dtype)
    ends = np.cumsum(golden.chunks)
    once = [
        Step(int(end - count), rows[:, end - count : end])
        for end, count in zip(ends, golden.chunks, strict=True)
    ]
    first = int(ends[0])
    astray = Step(first, rows[:, ::-1][:, : rows.shape[1] - first])  # other words, to be rolled back
    found = subject.run_language([*once, astray, *once[1:]], rows.shape[1])
    direct, again = found[: len(once)], found[len(once) + 1 :]
    for what, logits, reference in (
        ("prefill and decode", direct, golden.logits),
        ("after a rollback", again, golden.logits[1:]),
    ):
        errors = worst_row_errors(reference, logits)
        yield first, _row(stage, f"{_pytorch(stage)}, {what}", errors, stage.tolerance)
    yield first, _greedy_row(stage, golden.logits, direct)
    for size in stage.sizes:
        on_step(f"{subject.name}: language model, {size} tokens a run")
        yield size, _prefill_row(subject, stage, rows, first, size)


def _prefill_row(subject: Subject, stage: Stage, rows: Array, piece: int, size: int) -> ParityRow:
    """A sequence of `size` tokens read at once, against the same read piece by piece.

    Such pieces were compared with PyTorch before.
    """
    sequence = np.tile(rows, (1, -(-size // rows.shape[1]), 1))[:, :size]
    starts = range(0, size, piece)
    pieces = subject.run_language([Step(at, sequence[:, at : at + piece]) for at in starts], size)
    (whole,) = subject.run_language([Step(0, sequence)], size)
    against = f"itself by {piece} tokens, {size} tokens a run"
    return _row(stage, against, relative_errors(pieces[-1], whole), stage.tolerance)


def _greedy_row(stage: Stage, reference: Array, found: Array) -> ParityRow:
    """How many of the tokens that would be said are others. Where two of the model's own logits are nearer to
    each other than the tolerance, either may come first."""
    said = np.argmax(np.where(np.isfinite(found), found, -np.inf), axis=1)
    rows = np.arange(len(reference))
    behind = reference.max(axis=1) - reference[rows, said]
    allowed = 2 * _norm(stage) * np.sqrt(np.mean(reference.astype(np.float64) ** 2, axis=1))
    other = float(np.mean((behind > allowed) | ~np.isfinite(found).all(axis=1)))
    reason = "the same token first, but where the model's own are as near as the tolerance"
    return _row(stage, f"{_pytorch(stage)}, greedy tokens", (other, other), Tolerance(0.0, reason))


def _row(stage: Stage, against: str, errors: Sequence[float], tolerance: Tolerance) -> ParityRow:
    largest, norm = (float(error) for error in errors)
    return ParityRow(stage.graph, stage.precision, against, largest, norm, tolerance.norm, tolerance.reason)


def _norm(stage: Stage) -> float:
    assert stage.tolerance.norm is not None, "a stage is judged"
    return stage.tolerance.norm


def _pytorch(stage: Stage) -> str:
    same = stage.precision in QUANTIZED
    return f"PyTorch rounded to {stage.precision}" if same else "PyTorch float32"


def _frames(size: int) -> str:
    return "1 frame" if size == 1 else f"{size} frames"
