"""Whether this machine can build for a target, and if not, why: one line.

Takes what was found out about the machine; finds out nothing of the GPU itself.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from llamavid.engines import Device
from llamavid.targets import Library, Target, Version, dotted, version_of


@dataclass(frozen=True)
class Site:
    """A machine to build on.

    Args:
        versions: of the libraries that are installed; what is missing says in `absent` why.
        device: its GPU; None where there is none, or none that answers.
        no_device: why not.
        machine: its processor, as `platform.machine()` says.
    """

    versions: dict[Library, str]
    absent: dict[Library, str]
    device: Device | None
    no_device: str = ""
    machine: str = platform.machine()


def why_not(target: Target, site: Site) -> str:
    """Why it cannot build for `target`; empty where it can."""
    product = target.library.product
    if site.machine != target.machine:
        return f"{target.name} has a processor {target.machine}, this machine {site.machine}"
    if target.library not in site.versions:
        return site.absent.get(target.library, f"{product} is not installed")
    version = site.versions[target.library]
    if not target.takes(version_of(version)):
        return f"{target.name} takes {product} {_range(target.first, target.last)}, here is {version}"
    if target.library is Library.TENSORRT_RTX:
        return ""
    if site.device is None:
        why = site.no_device or "there is none"
        return f"{product} builds on the very GPU that engines are for: {why}"
    if site.device.capability != target.capability:
        here = f"{site.device.name} ({dotted(site.device.capability)})"
        return (
            f"{product} builds for the GPU that is there, {here}; "
            f"{target.name} is {dotted(target.capability)}"
        )
    return ""


def _range(first: Version, last: Version) -> str:
    return f"{dotted(first)} to {dotted(last)}" + (".x" if len(last) == 1 else "")
