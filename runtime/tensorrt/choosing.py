"""Which engine set of a bundle this machine can use, or why it cannot.

Hashes first, then the device, then the stamp; nothing is deserialized here.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

from llamavid.bundle import GRAPHS, Bundle
from llamavid.engines import (
    Device,
    EngineSet,
    command,
    engine_sets,
    open_engines,
    require_device,
    require_stages,
    require_stamp,
)
from llamavid.errors import BundleError, DeviceError, LlamaVidError, ParityError
from llamavid.runtime.tensorrt.device import this_device
from llamavid.targets import THIS, Library, find_target, target_of, version_of


def usable_engines(bundle: Bundle, on: str, stages: Sequence[str] = GRAPHS) -> tuple[EngineSet, Device]:
    """The set for a target, or for THIS machine, with engines for all of `stages`; and the device it is for.

    Raises:
        UsageError: there is no target of that name.
        BundleError: the set is missing, damaged, or lacks a stage.
        DeviceError: there is no such GPU or library here, or the set was built for another.
        ParityError: the set was never compared with the model here.
    """
    return _for_this_machine(bundle, stages) if on == THIS else _checked(bundle, find_target(on).name, stages)


def examined(bundle: Bundle) -> dict[str, str | None]:
    """Of each set, why it cannot be used here; None where it can."""
    found: dict[str, str | None] = {}
    for name in engine_sets(bundle):
        try:
            _checked(bundle, name, GRAPHS)
        except LlamaVidError as error:
            found[name] = str(error)
        else:
            found[name] = None
    return found


def _for_this_machine(bundle: Bundle, stages: Sequence[str]) -> tuple[EngineSet, Device]:
    """The first that can be used; the one that has this machine's name is tried first."""
    names = engine_sets(bundle)
    if not names:
        raise BundleError(
            f"{bundle.folder} has no engines",
            next_step=f"Run: {command('build', bundle.folder, THIS)}. Or pass --on cpu.",
        )
    mine = _names_of_this_machine()
    refused: dict[str, LlamaVidError] = {}
    for name in sorted(names, key=lambda name: (name not in mine, name)):
        try:
            return _checked(bundle, name, stages)
        except (BundleError, DeviceError, ParityError) as error:
            refused[name] = error
    first, *others = refused.values()
    if not others:
        raise first
    reasons = "; ".join(f"{name}: {error.given}" for name, error in refused.items())
    raise type(first)(reasons, next_step=first.next_step)


def _checked(bundle: Bundle, target: str, stages: Sequence[str]) -> tuple[EngineSet, Device]:
    engines = open_engines(bundle, target)
    require_stages(engines, stages)
    device = this_device(engines.manifest.library)
    require_device(engines, device)
    require_stamp(engines, device)
    return engines, device


def _names_of_this_machine() -> set[str]:
    """Of the targets that it is, by the libraries that are installed."""
    names = set()
    for library in Library:
        try:
            device = this_device(library)
            target = target_of(device.capability, library, version_of(device.version), platform.machine())
        except DeviceError:  # told where a set is refused for it
            continue
        names.add(target.name)
    return names
