"""Which engines a set needs, and the name of each: said before anything is built.

An engine's name ends in a digest of all that it depends on (the graph and its weights, profiles, library,
version, device, flags). So an equal name is an equal engine, whoever built it, and there is no need to
build it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from llamavid.bundle import Bundle
from llamavid.contract import GraphContract, Lowering
from llamavid.engines import Profile, graph_digest
from llamavid.errors import BundleError
from llamavid.export.compilation import RECIPE
from llamavid.export.job import STAGES, BuildOptions, Job
from llamavid.export.profiles import CACHE, profiles_of
from llamavid.targets import Target, lowering_for, require_precision


@dataclass(frozen=True)
class EnginePlan:
    """One engine to be.

    Args:
        stage: what it does in an answer: vision, content, context or llm.
        graph: of the bundle's manifest; the language model has one for each lowering.
        fixed: named dimensions that are one number in it.
        weights_bytes: of the graph's weights.
    """

    stage: str
    graph: str
    precision: str
    contract: GraphContract
    profiles: tuple[Profile, ...]
    fixed: dict[str, int]
    source: Path
    weights_bytes: int
    file: str  # its name


def engine_plans(job: Job) -> tuple[EnginePlan, ...]:
    """Of the stages that are asked for, in the order of an answer.

    Raises:
        UsageError: a size cannot be.
        BundleError: the bundle was exported without a graph that the library needs.
        DeviceError: the target does not have a graph's precision.
    """
    lowering = lowering_for(job.trt.library, job.trt.numbers)
    return tuple(_plan(job, stage, graph_of(stage, lowering)) for stage in job.options.asked)


def graph_of(stage: str, lowering: Lowering) -> str:
    """The language model has a graph for each lowering."""
    return f"llm.{lowering.value}" if stage == "llm" else stage


def fixed_dimensions(graph: str, profiles: tuple[Profile, ...]) -> dict[str, int]:
    """Of the static lowering: its cache has one length."""
    static = graph == graph_of("llm", Lowering.STATIC)
    return {CACHE: profiles[0].largest["past.0.key"][2]} if static else {}


def require_graphs(bundle: Bundle, target: Target, options: BuildOptions) -> None:
    """The same questions where the library is not at hand: any of its versions that the target takes will do.

    Raises: what `engine_plans` raises.
    """
    lowerings = [lowering_for(target.library, version) for version in (target.first, target.last)]
    for stage in options.asked:
        graphs = [graph_of(stage, lowering) for lowering in lowerings]
        there = [graph for graph in graphs if graph in bundle.manifest.graphs]
        for graph in there or graphs[:1]:
            _require_graph(bundle, target, graph)
            profiles_of(bundle.manifest.graphs[graph].contract, bundle.manifest.model, options.sizes)


def _require_graph(bundle: Bundle, target: Target, graph: str) -> None:
    if graph not in bundle.manifest.graphs:
        others = " ".join(f"--graph {stage}" for stage in STAGES if stage != "llm")
        raise BundleError(
            f"{bundle.folder} has no graph {graph}, which {target.name} needs of the language model",
            next_step=f"Export it again with this version of llamavid, or pass {others}.",
        )
    require_precision(target, f"graph {graph}", bundle.manifest.graphs[graph].precision)


def _plan(job: Job, stage: str, graph: str) -> EnginePlan:
    _require_graph(job.bundle, job.target, graph)
    entry = job.bundle.manifest.graphs[graph]
    static = graph == graph_of("llm", Lowering.STATIC)
    model, sizes = job.bundle.manifest.model, job.options.sizes
    profiles = profiles_of(entry.contract, model, sizes, static=static, one=job.trt.is_rtx)
    depends_on = {
        "recipe": RECIPE,
        "graph": graph_digest(job.bundle, graph),
        "profiles": [dataclasses.asdict(profile) for profile in profiles],
        "library": job.trt.library.value,
        "version": job.trt.version,
        "machine": job.target.machine,
        "settings": dataclasses.asdict(job.settings),
    }
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    return EnginePlan(
        stage,
        graph,
        entry.precision,
        entry.contract,
        profiles,
        fixed_dimensions(graph, profiles),
        job.bundle.path(entry.file),
        job.bundle.manifest.files[entry.weights_file].size,
        f"{stage}-{digest[:16]}.engine",
    )
