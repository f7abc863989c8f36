"""Engine sets for tests of words: everything of one but engines, whose bytes nobody deserializes here."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llamavid.bundle import Bundle, FileEntry, ParityRow, file_sha256
from llamavid.contract import GraphContract, Lowering
from llamavid.engines import (
    ENGINES,
    FOLDER,
    FORMAT_VERSION,
    Device,
    EngineEntry,
    EngineManifest,
    EngineSet,
    Profile,
    open_engines,
)
from llamavid.targets import Library, Target, find_target

A100 = Device("NVIDIA A100-SXM4-40GB", (8, 0), "580.95.05", Library.TENSORRT, "10.16.1.11", 39 << 30)
GRAPH_OF = {"vision": "vision", "content": "content", "context": "context", "llm": "llm.static"}


def engine_set(bundle: Bundle, target: str = "a100", **changes: Any) -> EngineSet:
    """Writes one for the target, of `changes` to its manifest, and opens it."""
    write_engine_set(bundle, target, **changes)
    return open_engines(bundle, target)


def write_engine_set(bundle: Bundle, target: str = "a100", **changes: Any) -> Path:
    folder = bundle.folder / FOLDER / target
    folder.mkdir(parents=True)
    manifest = replace(_manifest(bundle, find_target(target), folder), **changes)
    (folder / ENGINES).write_text(manifest.to_json())
    return folder


def rows_of(engines: EngineSet, error: float = 1e-3) -> list[ParityRow]:
    """One of each engine."""
    return [
        ParityRow(entry.graph, entry.precision, "PyTorch float32", error, error, 2e-2, "float16")
        for entry in engines.manifest.engines.values()
    ]


def frames_profile(contract: GraphContract, frames: tuple[int, int, int] = (1, 4, 8)) -> Profile:
    smallest, tuned, largest = (
        {
            spec.name: tuple(
                {"n": n, "R": 257, "L": 12}.get(dim, 1) if isinstance(dim, str) else dim for dim in spec.shape
            )
            for spec in contract.inputs
        }
        for n in frames
    )
    return Profile("frames", smallest, tuned, largest)


def _manifest(bundle: Bundle, target: Target, folder: Path) -> EngineManifest:
    return EngineManifest(
        format_version=FORMAT_VERSION,
        bundle=bundle.digest,
        target=target.name,
        library=target.library,
        version="10.16.1.11" if target.library is Library.TENSORRT else "1.7.1.2",
        capability=target.capability,
        lowering=Lowering.STATIC,
        version_compatible=False,
        hardware_compatible=False,
        built_with={"llamavid": "0.1.0", "driver": "580.95.05", "processor": platform.machine()},
        settings={"flags": "strongly typed"},
        engines={stage: _entry(bundle, stage, folder) for stage in GRAPH_OF},
    )


def _entry(bundle: Bundle, stage: str, folder: Path) -> EngineEntry:
    entry = bundle.manifest.graphs[stage]
    file = folder / f"{stage}.engine"
    file.write_bytes(np.random.default_rng(len(stage)).bytes(1000))
    return EngineEntry(
        file.name,
        GRAPH_OF[stage],
        entry.precision,
        entry.contract,
        (frames_profile(entry.contract),),
        FileEntry(1000, file_sha256(file)),
    )
