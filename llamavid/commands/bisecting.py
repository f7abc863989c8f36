"""--bisect: a bisection of each stage that is asked for, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from llamavid.console import Progress

if TYPE_CHECKING:
    from llamavid.bundle import Bundle
    from llamavid.export.bisect import BlockError, RunFile
    from llamavid.golden import Golden
    from llamavid.runtime.verify import Subject

_CACHE = 256  # tokens


@dataclass(frozen=True)
class Examined:
    """What runs the marked graphs of one stage in ONNX Runtime's place, and what it takes.

    Args:
        largest: frames of a run, or tokens of a prefill.
        cache: tokens.
    """

    run: RunFile
    largest: int
    cache: int


@dataclass(frozen=True)
class Bisection:
    """Of one run of one graph."""

    graph: str
    run: str  # "8 frames", "prefill", "decode"
    steps: tuple[BlockError, ...]
    first: BlockError | None

    def show(self) -> None:
        click.echo(f"{self.graph}, {self.run}: own error of each block, and the error so far")
        for step in self.steps:
            mark = click.style(" <-- first", fg="red") if step is self.first else ""
            click.echo(f"  {step.block:24} {step.own_error:9.1e} {step.error:9.1e}{mark}")
        if self.first is None:
            largest = max(self.steps, key=lambda step: step.own_error)
            click.echo(
                f"  no block goes wrong by itself; {largest.block} adds the most, {largest.own_error:.1e}"
            )


def bisections(
    bundle: Bundle,
    golden: Golden,
    subject: Subject,
    sizes: Mapping[str, int],
    progress: Progress,
    *,
    engine: Examined | None = None,
) -> Iterator[Bisection]:
    """Stage after stage.

    Args:
        sizes: frames of a run, by stage.
        engine: what is examined; without it, the graphs as ONNX Runtime runs them.
    """
    from llamavid.export.bisect import bisect, first_wrong
    from llamavid.runtime.parity import run_file

    examined, reference = engine.run if engine else run_file, partial(run_file, exact_int4=True)
    for name, size in sizes.items():
        stage = subject.stages[name]
        entry = bundle.manifest.graphs[stage.graph]
        file = bundle.path(entry.file)
        limits = (engine.largest, engine.cache) if engine else None
        run = partial(examined, file)
        for what, inputs in _runs(golden, stage.contract, bundle, name, size, run, limits):
            progress.update(f"bisect {stage.graph}, {what}", 0, None)
            steps = tuple(bisect(file, stage.contract, inputs, run=examined, reference=reference))
            progress.close()
            yield Bisection(stage.graph, what, steps, first_wrong(steps, stage.precision))


def _runs(
    golden: Golden,
    contract: Any,
    bundle: Bundle,
    name: str,
    size: int,
    run: Any,
    limits: tuple[int, int] | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inputs to bisect with: of the language model a prefill, and a decode step on the cache that it left.

    `run` runs the graph without marks, for that cache, before anything is given: where it is an engine, the
    marked one takes its place on the GPU once.
    """
    from llamavid.elements import as_elements
    from llamavid.export.bisect import next_inputs
    from llamavid.runtime.verify import LANGUAGE_STAGE, arrangements, prefill_inputs, stage_inputs

    if name != LANGUAGE_STAGE:
        frames = len(golden.pixels)
        rows = arrangements(frames, min(max(size, frames), limits[0] if limits else max(size, frames)))[0]
        yield f"{len(rows)} frames", stage_inputs(golden, contract, rows)
        return
    cache = limits[1] if limits else min(_CACHE, bundle.manifest.model.language.context_length)
    inputs = prefill_inputs(golden, contract, cache)
    at = min(int(golden.chunks[0]), limits[0] if limits else cache)
    inputs["inputs_embeds"] = inputs["inputs_embeds"][:, :at]
    inputs["total_length"][:] = at
    row = as_elements(golden.sequence[:, at : at + 1], contract.spec("inputs_embeds").dtype)
    step = next_inputs(inputs, run(inputs), row)
    yield "prefill", inputs
    yield "decode", step
