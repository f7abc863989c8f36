"""A bundle's frame graphs, one at a time, to be timed: what a profile sees of a machine.

Note [Decoder and context]
    One graph runs both. It is timed whole; which part of that is `context` is told by the times of its
    nodes, in runs of their own: the exporter wrote them into the scope `context/`, and what runs the graph
    keeps their names. ONNX Runtime profiles nodes, TensorRT layers. Where an engine has fused nodes of both,
    that layer is divided by operations, and the profile says so. Measuring nodes slows them all, so only
    their ratio is used. The projection of the decoder's rows to queries counts as decoder.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llamavid.bundle import GRAPHS, GraphEntry, ParityRow
from llamavid.ceilings import Ceilings
from llamavid.contract import GraphContract
from llamavid.engines import EngineEntry
from llamavid.errors import DeviceError
from llamavid.runtime.executors import open_session
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.profile.measured_ceilings import cpu_ceilings

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]

SCOPE = "context"  # also the begin of its outputs' names
_PROFILED_RUNS = 6  # the first warms up


class Split(NamedTuple):
    """The part of the context graph's time that is `context`, and how that was found."""

    context: float
    how: str


class Timed(Protocol):
    """One stage with its inputs, where they are computed on."""

    def run(self) -> float:
        """Once; milliseconds."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Origin:
    """What runs, and what vouches for it. By stage: vision, content, context, llm."""

    contracts: dict[str, GraphContract]
    precisions: dict[str, str]
    parity: tuple[ParityRow, ...]  # of the graphs, or the engines' stamp
    digest: str  # of the bundle, or of the engine set

    @classmethod
    def of(
        cls,
        entries: Mapping[str, GraphEntry] | Mapping[str, EngineEntry],
        parity: Iterable[ParityRow],
        digest: str,
    ) -> Origin:
        """Of graphs or engines, by stage."""
        contracts = {stage: entry.contract for stage, entry in entries.items()}
        precisions = {stage: entry.precision for stage, entry in entries.items()}
        return cls(contracts, precisions, tuple(parity), digest)


class Stages(Protocol):
    """By name: vision, content, context. One thread."""

    origin: Origin

    @property
    def largest_batch(self) -> int | None:
        """Frames of a run; None where any number goes."""
        ...

    def ceilings(self, on_step: Callable[[str], None]) -> Ceilings:
        """Of the machine, measured."""
        ...

    def outputs(self, stage: str, inputs: Inputs) -> dict[str, Array]: ...

    def timed(self, stage: str, inputs: Inputs) -> Timed: ...

    def split(self, inputs: Inputs, *, by_operations: float) -> Split:
        """Of the context graph with these inputs, by Note [Decoder and context].

        by_operations: the part that context has of the multiply-adds.
        """
        ...


class CpuStages:
    """By ONNX Runtime. Times are the host's clock's, around a whole run."""

    largest_batch: int | None = None

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        manifest = graphs.bundle.manifest
        self.origin = Origin.of(
            {stage: manifest.graphs[stage] for stage in GRAPHS},
            (row for row in manifest.parity if row.graph in GRAPHS),
            graphs.bundle.digest,
        )

    def ceilings(self, on_step: Callable[[str], None]) -> Ceilings:
        return cpu_ceilings(threads=self._graphs.threads, on_step=on_step)

    def outputs(self, stage: str, inputs: Inputs) -> dict[str, Array]:
        return self._graphs.load(stage).run(inputs)

    def timed(self, stage: str, inputs: Inputs) -> Timed:
        executor = self._graphs.load(stage)
        return _OnHost(lambda: executor.run(inputs))

    def split(self, inputs: Inputs, *, by_operations: float) -> Split:
        entry = self._graphs.bundle.manifest.graphs["context"]
        nodes = node_milliseconds(self._graphs.bundle.path(entry.file), inputs, threads=self._graphs.threads)
        return split_of(nodes, by_operations, "ONNX Runtime's time of each node")


class _OnHost:
    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def run(self) -> float:
        start = time.perf_counter()
        self._work()
        return (time.perf_counter() - start) * 1000

    def close(self) -> None:
        """Nothing is held."""


def split_of(nodes: Mapping[str, float], by_operations: float, how: str) -> Split:
    """From the milliseconds of each node or layer, by its name.

    Raises:
        DeviceError: no time was reported.
    """
    if not sum(nodes.values()):
        raise DeviceError("no node of the context graph reported a time", next_step="Run it again.")
    context = divided = 0.0
    for name, spent in nodes.items():
        owners = _owners(name)
        if owners == {True, False}:
            context += spent * by_operations
            divided += spent
        elif owners == {True}:
            context += spent
    share = divided / sum(nodes.values())
    if share:
        how += f"; {share:.0%} of it, fused of both, divided by operations"
    return Split(context / sum(nodes.values()), how)


def _owners(name: str) -> set[bool]:
    """Of the nodes that a layer's name tells: whether one is of `context`, and whether one is not.

    TensorRT joins names by `+`, tells a range as {ForeignNode[FIRST...LAST]}, and calls kernels that its
    compiler made __myl_*: such a one may be of both.
    """
    if "__myl" in name:
        return {True, False}
    parts = re.split(r"\.\.\.|[+\[\]{}, ]+", name.replace("ForeignNode", ""))
    return {SCOPE in part for part in parts if part}


def node_milliseconds(file: Path, inputs: Inputs, *, threads: int | None) -> dict[str, float]:
    """Of each node of an ONNX file, by ONNX Runtime's own profiling; medians of a few runs."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(file, threads=threads, profile_prefix=Path(folder, "nodes"))
        for _ in range(_PROFILED_RUNS):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent = defaultdict[str, list[float]](list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1000)
    return {name: statistics.median(each[1:] or each) for name, each in spent.items()}


def repeated(array: Array, rows: int) -> Array:
    """Its rows again and again, `rows` in all."""
    return np.ascontiguousarray(array[np.arange(rows) % len(array)])
