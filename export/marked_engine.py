"""An engine of a set built anew from a marked graph, as the set's own was: what a bisection of it runs.

    data, contract = compile_marked(engines, "vision", marked_file)

Marks are outputs, so the builder cannot fuse across them: each block is compiled as it is, not together with
its neighbours. The bytes are for this process alone; no set takes them in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamavid.contract import GraphContract
from llamavid.engines import EngineSet
from llamavid.errors import DeviceError
from llamavid.export.blocks import MARK
from llamavid.export.compilation import OnStep, compiled
from llamavid.export.configuration import settings_of
from llamavid.export.engine_plan import fixed_dimensions
from llamavid.export.tensorrt_library import open_library


def compile_marked(
    engines: EngineSet, stage: str, file: Path, *, on_step: OnStep = lambda phase, done, steps: None
) -> tuple[Any, GraphContract]:
    """The engine's bytes, and its contract with the marks in it.

    Raises:
        UsageError, BundleError, DeviceError: what `compiled` raises; or another version is installed here.
    """
    manifest, entry = engines.manifest, engines.manifest.engines[stage]
    trt = open_library(manifest.library)
    if trt.version != manifest.version:
        raise DeviceError(
            f"{engines.folder} was built by {manifest.version}; {trt.label} is installed",
            next_step="Build it again here.",
        )
    result = compiled(
        trt,
        entry.graph,
        file,
        entry.contract,
        entry.profiles,
        settings_of(manifest),
        fixed=fixed_dimensions(entry.graph, entry.profiles),
        marks=MARK,
        on_step=on_step,
    )
    return memoryview(result.data), result.contract
