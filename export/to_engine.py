"""A bundle's graphs become the engine set of one target: `BUNDLE/engines/TARGET/`.

    build_engines(Job(bundle, find_target("rtx-sm86"), open_library(Library.TENSORRT_RTX)))

What is there and equal is taken over, what an interrupted build finished too; the rest is built, one graph
after the other, and the set is put in place in one rename. Nothing here knows PyTorch or ONNX: a device
builds with the base install and its own TensorRT.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamavid import __version__
from llamavid.bundle import Bundle, is_replaceable, staged_folder
from llamavid.engines import (
    ENGINES,
    FOLDER,
    FORMAT_VERSION,
    STAMP,
    EngineEntry,
    EngineManifest,
    EngineSet,
    open_engines,
)
from llamavid.errors import BundleError
from llamavid.export.compilation import compiled, merged_timing_caches, require_settings
from llamavid.export.configuration import configuration_of
from llamavid.export.disk import require_disk
from llamavid.export.engine_plan import EnginePlan, engine_plans
from llamavid.export.engine_store import EngineStore, StoredEngine
from llamavid.export.job import Job
from llamavid.export.lock import locked
from llamavid.export.package import link_or_copy
from llamavid.export.preflight import (
    Need,
    cache_bytes,
    device_remark,
    need_of,
    require_memory,
)
from llamavid.export.timing_cache import TimingCacheFile
from llamavid.memory import available_memory
from llamavid.targets import Target, dotted, lowering_for

OnProgress = Callable[[str, int, int | None], None]  # what, done, of how many if known
Say = Callable[[str], None]


@dataclass(frozen=True)
class EngineOutcome:
    """What became of one engine."""

    stage: str
    file: str
    size: int  # bytes
    seconds: float  # to build it; 0 where it was taken over
    built: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a build."""

    folder: Path
    manifest: EngineManifest
    engines: tuple[EngineOutcome, ...]
    seconds: float


def build_engines(
    job: Job, *, on_progress: OnProgress = lambda what, done, total: None, say: Say = lambda line: None
) -> Outcome:
    """Makes the set.

    Args:
        say: called with each line of the configuration before anything is built, then with remarks.

    Raises:
        UsageError: the library cannot build so.
        BundleError: a graph is missing or damaged, or the folder cannot be written.
        DeviceError: the target lacks a precision or an operator, memory or disk does not suffice, or
            another process is at work on the set. Nothing half-written stays; what was finished is kept.
    """
    start = time.monotonic()
    require_settings(job.trt, job.settings)
    plans = engine_plans(job)
    folder = _writable(job.bundle.folder / FOLDER) / job.target.name
    with locked(folder.with_name(f".lock-{folder.name}"), str(folder), wait=job.options.wait):
        _sweep(folder)
        _remove_damaged(folder)
        existing = _existing(job.bundle, job.target)
        store = EngineStore(folder.with_name(f".built-{folder.name}"), existing)
        if job.options.force:
            store.clear()
        ready = {} if job.options.force else _ready(store, plans)
        need = _need(plans, set(ready))
        configuration = configuration_of(job, plans, need)
        _say_first(configuration, need, job.target, say)
        if not job.options.ignore_memory:
            require_memory(need, available_memory(), device=job.device)
        require_disk(folder.parent, need.disk, "the engines", next_step="Make room and run it again.")
        stored, outcomes = {}, []
        for plan in plans:
            began, found = time.monotonic(), ready.get(plan.stage)
            engine = found or store.add(plan.file, _built(job, plan, folder, on_progress, say))
            seconds = 0.0 if found else time.monotonic() - began
            outcomes.append(EngineOutcome(plan.stage, plan.file, engine.content.size, seconds, not found))
            stored[plan.stage] = engine
        manifest = _put_in_place(folder, _manifest(job, configuration, plans, stored), existing, stored)
        store.clear()
    return Outcome(folder, manifest, tuple(outcomes), time.monotonic() - start)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written ({error.strerror})", next_step="Copy the bundle, and build there."
        ) from error
    return folder


def _sweep(folder: Path) -> None:
    """What a killed build left beside the set; whoever holds the lock is alone."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.with_name(f".built-{folder.name}").glob(".*"):
        left.unlink(missing_ok=True)


def _remove_damaged(folder: Path) -> None:
    """A set that cannot say what it holds makes room now: to find out after the build would be too late.

    Raises:
        BundleError: what is there is none of ours.
    """
    if not folder.exists() or is_replaceable(folder, ENGINES):
        return
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else [folder.name]
    others = [name for name in names if name not in (ENGINES, STAMP) and not name.endswith(".engine")]
    if others:
        raise BundleError(
            f"{folder} holds {others[0]}, which is no part of an engine set",
            next_step=f"Move {folder} away and run it again.",
        )
    shutil.rmtree(folder)


def _existing(bundle: Bundle, target: Target) -> EngineSet | None:
    """The set that is there; a damaged one, or one of another bundle, has nothing to take over."""
    try:
        return open_engines(bundle, target.name)
    except BundleError:
        return None


def _ready(store: EngineStore, plans: tuple[EnginePlan, ...]) -> dict[str, StoredEngine]:
    """By stage, what need not be built."""
    found = {plan.stage: store.find(plan.file) for plan in plans}
    return {stage: engine for stage, engine in found.items() if engine is not None}


def _need(plans: tuple[EnginePlan, ...], ready: set[str]) -> Need:
    weights = {plan.stage: plan.weights_bytes for plan in plans}
    longest = [cache_bytes(plan.contract, plan.profiles[-1].largest) for plan in plans]
    return need_of(weights, weights.keys() - ready, sum(longest))


def _say_first(configuration: dict[str, str], need: Need, target: Target, say: Say) -> None:
    width = max(map(len, configuration)) + 1
    for name, value in configuration.items():
        say(f"{name:{width}} {value}")
    remark = device_remark(need, target)
    if remark:
        say(remark)


def _built(job: Job, plan: EnginePlan, folder: Path, on_progress: OnProgress, say: Say) -> memoryview:
    on_progress(f"build {plan.graph}", 0, None)
    cache = _timing_cache(job, folder) if job.trt.has_timing_cache else None
    result = compiled(
        job.trt,
        plan.graph,
        plan.source,
        plan.contract,
        plan.profiles,
        job.settings,
        fixed=plan.fixed,
        timing_cache=cache.read() if cache else b"",
        on_step=lambda phase, done, steps: on_progress(f"build {plan.graph}", done, steps or None),
    )
    if cache:
        try:
            cache.add(result.timing_cache)
        except OSError as error:
            say(f"the timing cache {cache.file} cannot be written ({error.strerror}): it goes on without")
    return memoryview(result.data)


def _timing_cache(job: Job, folder: Path) -> TimingCacheFile:
    """One of another library, version or device would be refused: the file's name says which it is of."""
    name = f".timing-{job.trt.library.value}-{job.trt.version}-sm{dotted(job.target.capability)}.cache"
    return TimingCacheFile(
        job.options.timing_cache or folder.with_name(name),
        lambda theirs, ours: merged_timing_caches(job.trt, theirs, ours),
    )


def _manifest(
    job: Job,
    configuration: dict[str, str],
    plans: tuple[EnginePlan, ...],
    stored: dict[str, StoredEngine],
) -> EngineManifest:
    return EngineManifest(
        format_version=FORMAT_VERSION,
        bundle=job.bundle.digest,
        target=job.target.name,
        library=job.trt.library,
        version=job.trt.version,
        capability=job.target.capability,
        lowering=lowering_for(job.trt.library, job.trt.numbers),
        version_compatible=job.settings.version_compatible,
        hardware_compatible=job.settings.hardware_compatible,
        built_with={
            "llamavid": __version__,
            "driver": job.device.driver if job.device else "none",
            "system": platform.platform(),
            "processor": platform.machine(),
        },
        settings={name: value for name, value in configuration.items() if name != "bundle"},
        engines={
            plan.stage: EngineEntry(
                plan.file,
                plan.graph,
                plan.precision,
                plan.contract,
                plan.profiles,
                stored[plan.stage].content,
            )
            for plan in plans
        },
    )


def _put_in_place(
    folder: Path, manifest: EngineManifest, existing: EngineSet | None, stored: dict[str, StoredEngine]
) -> EngineManifest:
    """The set of these engines and of those that stay. An equal one is left alone, with its stamp."""
    sources = {stage: engine.path for stage, engine in stored.items()}
    if existing is not None and _alike(manifest, existing.manifest):
        kept = {s: entry for s, entry in existing.manifest.engines.items() if s not in manifest.engines}
        sources.update({stage: existing.path(stage) for stage in kept})
        manifest = dataclasses.replace(manifest, engines={**manifest.engines, **kept})
        if manifest.engines == existing.manifest.engines:
            return existing.manifest
    with staged_folder(folder, replace=True, marker=ENGINES, what="an engine set") as stage:
        for name, entry in manifest.engines.items():
            link_or_copy(sources[name], stage / entry.file)
        (stage / ENGINES).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _alike(a: EngineManifest, b: EngineManifest) -> bool:
    """Whether engines of one set may lie in the other."""

    def binds(manifest: EngineManifest) -> EngineManifest:
        return dataclasses.replace(manifest, built_with={}, settings={}, engines={})

    return binds(a) == binds(b)
