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

_CACHE = 256  # tokens: what engines have at least


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
    run: RunFile | None = None,
) -> Iterator[Bisection]:
    """Stage after stage.

    Args:
        sizes: frames of a run, by stage.
        run: what runs the marked graphs; without it, ONNX Runtime as it answers.
    """
    from llamavid.export.bisect import bisect, first_wrong
    from llamavid.runtime.parity import run_file

    examined, reference = run or run_file, partial(run_file, exact_int4=True)
    for name, size in sizes.items():
        stage = subject.stages[name]
        entry = bundle.manifest.graphs[stage.graph]
        file = bundle.path(entry.file)
        for what, inputs in _runs(golden, stage.contract, bundle, name, size, partial(examined, file)):
            progress.update(f"bisect {stage.graph}, {what}", 0, None)
            steps = tuple(bisect(file, stage.contract, inputs, run=examined, reference=reference))
            progress.close()
            yield Bisection(stage.graph, what, steps, first_wrong(steps, stage.precision))


def _runs(
    golden: Golden, contract: Any, bundle: Bundle, name: str, size: int, run: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Inputs to bisect with: of the language model a prefill, and a decode step on the cache that it left."""
    from llamavid.elements import as_elements
    from llamavid.export.bisect import next_inputs
    from llamavid.runtime.verify import LANGUAGE_STAGE, arrangements, prefill_inputs, stage_inputs

    if name != LANGUAGE_STAGE:
        frames = len(golden.pixels)
        rows = arrangements(frames, max(size, frames))[0]
        yield f"{len(rows)} frames", stage_inputs(golden, contract, rows)
        return
    inputs = prefill_inputs(golden, contract, min(_CACHE, bundle.manifest.model.language.context_length))
    yield "prefill", inputs
    at = int(golden.chunks[0])
    row = as_elements(golden.sequence[:, at : at + 1], contract.spec("inputs_embeds").dtype)
    yield "decode", next_inputs(inputs, run(inputs), row)
