"""The full configuration of a build as lines: printed first, kept in `engines.json`.

Takes the job, its plans and what it needs, gives names and values in the order they are read in.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamavid.engines import EngineManifest, Profile
from llamavid.export.compilation import Settings
from llamavid.export.engine_plan import EnginePlan
from llamavid.export.job import Job
from llamavid.export.preflight import Need, gib
from llamavid.targets import dotted

_FLAGS, _TF32 = "flags", "TF32"


def configuration_of(job: Job, plans: tuple[EnginePlan, ...], need: Need) -> dict[str, str]:
    """Everything that an engine depends on, and what it will take."""
    target, device, workspace = job.target, job.device, job.settings.workspace_bytes
    return {
        "bundle": f"{job.bundle.folder} ({job.bundle.digest[:12]})",
        "target": f"{target.name}: {target.device}, compute capability {dotted(target.capability)}, "
        f"{target.machine}",
        "library": job.trt.label,
        "built on": f"{device.name}, driver {device.driver}" if device else "no GPU needed",
        "precision": ", ".join(f"{plan.graph} {plan.precision}" for plan in plans),
        "workspace": "as the library chooses" if workspace is None else gib(workspace),
        _FLAGS: ", ".join(_flags(job)),
        "memory": f"about {gib(need.build_memory)} to build, {gib(need.device_memory)} on the device",
        "disk": f"about {gib(need.disk)}",
        **{
            f"{plan.stage} {profile.name}": ", ".join(_shapes(profile))
            for plan in plans
            for profile in plan.profiles
        },
    }


def settings_of(manifest: EngineManifest) -> Settings:
    """What a set was built with; the limit of the workspace, which it does not keep, is the library's own."""
    return Settings(
        capabilities=(manifest.capability,),
        tf32=_TF32 in manifest.settings.get(_FLAGS, "").split(", "),
        version_compatible=manifest.version_compatible,
        hardware_compatible=manifest.hardware_compatible,
    )


def _flags(job: Job) -> Iterator[str]:
    yield "strongly typed"
    yield _TF32 if job.settings.tf32 else f"no {_TF32}"
    if job.settings.version_compatible:
        yield "version-compatible"
    if job.settings.hardware_compatible:
        yield "hardware-compatible"


def _shapes(profile: Profile) -> Iterator[str]:
    """`pixels 1x3x224x224 .. 8x3x224x224 .. 32x3x224x224`; of the cache of many layers, the first."""
    for tensor in profile.smallest:
        if tensor.startswith("past.") and tensor != "past.0.key":
            continue
        shapes = (profile.smallest[tensor], profile.tuned[tensor], profile.largest[tensor])
        written = ["x".join(map(str, shape)) for shape in shapes]
        yield f"{tensor} {' .. '.join(dict.fromkeys(written))}"
