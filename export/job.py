"""What is to be built: a bundle, for a target, with a library, as a user asked.

Data alone; `to_engine` does the work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llamavid.bundle import Bundle
from llamavid.engines import Device
from llamavid.errors import UsageError
from llamavid.export.compilation import Settings
from llamavid.export.profiles import Sizes
from llamavid.export.tensorrt_library import TensorRt
from llamavid.targets import Target

STAGES = ("vision", "content", "context", "llm")  # in the order of an answer


@dataclass(frozen=True)
class BuildOptions:
    """How a set is built.

    Args:
        stages: to build; none means all. Others stay in the set as long as they hold.
        workspace_bytes, tf32, version_compatible, hardware_compatible: see `Settings`.
        force: build what could be taken over too.
        wait: for another build of the same set, instead of failing.
        ignore_memory: build where it seems not to fit.
        timing_cache: file; None is one beside the sets.

    Raises:
        UsageError: there is no such stage.
    """

    stages: tuple[str, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)
    workspace_bytes: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    force: bool = False
    wait: bool = False
    ignore_memory: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown:
            raise UsageError(f"graph {unknown[0]!r}", expected=", ".join(STAGES))

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(stage for stage in STAGES if stage in self.stages or not self.stages)


@dataclass(frozen=True)
class Job:
    """One set to build.

    Args:
        device: the GPU to build on; None where the library needs none.
    """

    bundle: Bundle
    target: Target
    trt: TensorRt
    options: BuildOptions = field(default_factory=BuildOptions)
    device: Device | None = None

    @property
    def settings(self) -> Settings:
        options = self.options
        return Settings(
            capabilities=(self.target.capability,),
            workspace_bytes=options.workspace_bytes,
            tf32=options.tf32,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
        )
