"""verify: does this bundle answer like the model, here?

The golden inputs go through every engine on this device, at every size that it ships, and through ONNX
Runtime on the CPU. A set that passes is stamped, one that does not loses its stamp. With --bisect, the first
block that goes wrong is named.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamavid.commands.bundle_argument import chosen_bundle
from llamavid.commands.error_table import finite, print_row, row_document
from llamavid.commands.extras import require_extra
from llamavid.console import Progress, remark
from llamavid.errors import DeviceError, LlamaVidError, ParityError, UsageError

if TYPE_CHECKING:
    from llamavid.bundle import Bundle
    from llamavid.commands.bisecting import Bisection
    from llamavid.engines import Device, EngineSet
    from llamavid.golden import Golden
    from llamavid.runtime.verify import Compared, Subject


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--target", help="One engine set; without it, every one that is for this machine.")
@click.option("--on", "place", type=click.Choice(["cpu"]), help="cpu: the ONNX graphs alone. Stamps nothing.")
@click.option(
    "--bisect",
    "with_bisect",
    is_flag=True,
    help="Name the first block that goes wrong; engines are built anew with their blocks as outputs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def verify(
    bundle: Path | None, target: str | None, place: str | None, with_bisect: bool, as_json: bool
) -> None:
    """Compare BUNDLE with the PyTorch model on this device; engines that agree may answer here.

    Every stage runs on inputs that export recorded, at every batch size it ships. A mismatch is exit 1, and
    takes the engines' stamp away.
    """
    if target and place:
        raise UsageError("--target with --on cpu", expected="one of them")
    if with_bisect:
        require_extra("export", "onnx")
    from llamavid.bundle import open_bundle
    from llamavid.golden import read_golden

    opened = open_bundle(chosen_bundle(bundle))
    golden = read_golden(opened)
    sets = [] if place else _sets_here(opened, target)
    with Progress(quiet=as_json) as progress:
        run = _Run(opened, golden, progress, as_json, with_bisect)
        run.on_cpu(beside_engines=bool(sets))
        for engines, device in sets:
            run.on_engines(engines, device)
    run.finish()


class _Run:
    """One verification: what was compared, what was stamped, what failed."""

    def __init__(
        self, bundle: Bundle, golden: Golden, progress: Progress, as_json: bool, with_bisect: bool
    ) -> None:
        self._bundle, self._golden, self._progress = bundle, golden, progress
        self._as_json, self._with_bisect = as_json, with_bisect
        self._documents: list[dict[str, Any]] = []
        self._stamped: list[str] = []
        self._failed: list[str] = []
        self._graphs_agree = True

    def on_cpu(self, *, beside_engines: bool) -> None:
        from llamavid.bundle import GRAPHS
        from llamavid.runtime.parity import onnx_subject

        subject = onnx_subject(self._bundle)
        for name in sorted(set(GRAPHS) - set(subject.stages)):
            remark(
                f"{name} is in a type that ONNX Runtime has no kernels for on the CPU: not compared there."
            )
        if beside_engines:
            subject = _that_fits(self._bundle, subject)
        compared = self._compare(subject)
        self._graphs_agree = _all_passed(compared)
        if self._with_bisect:
            self._bisect(subject, compared)

    def on_engines(self, engines: EngineSet, device: Device) -> None:
        from llamavid.engines import remove_stamp, write_stamp

        try:
            with _engine_subject(engines, self._bundle) as subject:
                compared = self._compare(subject)
            if self._with_bisect:  # after the engines have left the GPU: another takes their place
                self._bisect(subject, compared, engines)
        except LlamaVidError:  # an engine that cannot be compared is not known to be right
            remove_stamp(engines)
            raise
        if not (self._graphs_agree and _all_passed(compared)):  # engines of wrong graphs are not right
            remove_stamp(engines)
            return
        write_stamp(engines, device, [each.row for each in compared])
        self._stamped.append(engines.manifest.target)
        self._documents[-1]["stamped"] = True

    def finish(self) -> None:
        """The last line, or the error."""
        folder = str(self._bundle.folder)
        if self._as_json:
            passed = not self._failed
            click.echo(json.dumps({"bundle": folder, "passed": passed, "compared": self._documents}))
        if self._failed:
            raise ParityError(
                f"{folder} differs from the model in {', '.join(self._failed)}",
                next_step="Add --bisect to see where it begins." if not self._with_bisect else "",
            )
        if not self._as_json:
            graphs = list(dict.fromkeys(row["graph"] for each in self._documents for row in each["rows"]))
            agree = f"ONNX Runtime agrees with PyTorch in {', '.join(graphs)}"
            what = f"stamped {', '.join(self._stamped)}" if self._stamped else agree
            click.echo(f'{folder}: {what}. Next: llamavid ask {shlex.quote(folder)} VIDEO "question"')

    def _compare(self, subject: Subject) -> list[Compared]:
        from llamavid.runtime.verify import compare

        if not self._as_json and subject.stages:
            self._progress.close()
            click.echo(f"{subject.name}:")
        compared = []
        for each in compare(self._golden, subject, on_step=lambda what: self._progress.update(what, 0, None)):
            compared.append(each)
            if not self._as_json:
                print_row(self._progress, each.row)
        failed = [each for each in compared if not each.row.passed]
        self._failed += [f"{each.row.graph} ({subject.name}, {each.row.against})" for each in failed]
        self._documents.append(
            {"on": subject.name, "stamped": False, "rows": [row_document(each.row) for each in compared]}
        )
        return compared

    def _bisect(
        self, subject: Subject, compared: Iterable[Compared], engines: EngineSet | None = None
    ) -> None:
        """The stages that failed, at the first size that did; all of them where none did."""
        failed = {each.stage: each.size for each in reversed(list(compared)) if not each.row.passed}
        sizes = failed or {name: min(stage.sizes, default=1) for name, stage in subject.stages.items()}
        if engines is not None and sizes:
            remark(
                f"{subject.name}: blocks are those of engines built anew, with each block's outputs as their "
                "own. Where none goes wrong, it is what the builder makes of several blocks together."
            )
        for name, size in sizes.items():
            if engines is None or not self._bisect_engine(subject, name, size, engines):
                self._bisect_graph(subject, name, size)

    def _bisect_engine(self, subject: Subject, name: str, size: int, engines: EngineSet) -> bool:
        """False, and a line that says why, where it cannot be built here."""
        from llamavid.commands.bisecting import bisections
        from llamavid.commands.engine_bisecting import NotBuiltError, builder, examined_engine

        try:
            with examined_engine(self._bundle, engines, name, builder(self._progress)) as engine:
                found = bisections(
                    self._bundle, self._golden, subject, {name: size}, self._progress, engine=engine
                )
                self._tell(found, "engine")
        except NotBuiltError as error:
            remark(
                f"{subject.name}: {name} cannot be built here ({error.given}). Blocks are those of the graph "
                "that it was built from, as ONNX Runtime runs them. Where none goes wrong, the engine was "
                "miscompiled."
            )
            return False
        return True

    def _bisect_graph(self, subject: Subject, name: str, size: int) -> None:
        from llamavid.commands.bisecting import bisections
        from llamavid.runtime.graphs import runs_on_a_cpu

        if not runs_on_a_cpu(subject.stages[name].graph, subject.stages[name].precision):
            remark(f"{name} is in a type that ONNX Runtime has no kernels for on the CPU: not bisected.")
            return
        self._tell(bisections(self._bundle, self._golden, subject, {name: size}, self._progress), "graph")

    def _tell(self, bisections: Iterable[Bisection], examined: str) -> None:
        for found in bisections:
            self._documents[-1].setdefault("bisected", []).append(
                {
                    "examined": examined,
                    "graph": found.graph,
                    "run": found.run,
                    "first_wrong": found.first and found.first.block,
                    "blocks": [{k: finite(v) for k, v in vars(step).items()} for step in found.steps],
                }
            )
            if not self._as_json:
                found.show()


def _all_passed(compared: Iterable[Compared]) -> bool:
    return all(each.row.passed for each in compared)


def _that_fits(bundle: Bundle, subject: Subject) -> Subject:
    """Without the graphs for which the CPU has no memory: where engines answer, it need not."""
    from llamavid.memory import available_memory

    free, stages = available_memory(), dict(subject.stages)
    for name, stage in subject.stages.items():
        weights = sum(bundle.manifest.files[file].size for file in bundle.manifest.graphs[stage.graph].files)
        if free is not None and weights > free:
            need, have = weights / 2**30, free / 2**30
            remark(
                f"{name} needs {need:.1f} GiB on the CPU, {have:.1f} are free: only its engine is compared."
            )
            del stages[name]
    return replace(subject, stages=stages)


def _sets_here(bundle: Bundle, target: str | None) -> list[tuple[EngineSet, Device]]:
    """The sets to verify, each with the device that it is for: this one. None where the bundle has none.

    Raises:
        BundleError, DeviceError: what was asked for is not there, or not for this machine.
    """
    from llamavid.engines import command, engine_sets, open_engines, require_device
    from llamavid.targets import THIS, find_target

    named = target not in (None, THIS)
    names = (find_target(str(target)).name,) if named else engine_sets(bundle)
    if not names and target is None:
        return []
    if not names:
        raise DeviceError(
            f"{bundle.folder} has no engines", next_step=f"Run: {command('build', bundle.folder, THIS)}."
        )
    opened = [open_engines(bundle, name) for name in names]
    from llamavid.runtime.tensorrt.device import this_device

    found, refusals = [], list[DeviceError]()
    for engines in opened:
        try:
            device = this_device(engines.manifest.library)
            require_device(engines, device)
            found.append((engines, device))
        except DeviceError as error:
            refusals.append(error)
    if not found and (named or len(refusals) == 1):
        raise refusals[0]
    if not found:
        raise DeviceError(
            f"none of the engine sets {', '.join(names)} is for this machine",
            next_step=f"Run: {command('build', bundle.folder, THIS)}, or pass --on cpu.",
        )
    return found


@contextmanager
def _engine_subject(engines: EngineSet, bundle: Bundle) -> Iterator[Subject]:
    from llamavid.runtime.tensorrt.parity import EngineRunner
    from llamavid.runtime.verify import engine_subject, read_steps

    language = bundle.manifest.model.language
    with EngineRunner(engines) as runner:
        yield engine_subject(
            engines,
            runner.run_graph,
            lambda steps, capacity: read_steps(runner.decoder(language), steps, capacity),
        )
