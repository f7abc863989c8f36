"""A build package: all that a machine needs to build a bundle's engines for its GPU, and how.

    PACKAGE/manifest.json and all that it names: a bundle like any other, which answers there too
            build.json    which target, library and versions, and the command
            BUILD.txt     the same for people

Its files are the bundle's own where the disk can link them: a package beside its bundle costs nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from llamavid.bundle import MANIFEST, Bundle, staged_folder
from llamavid.export.disk import require_disk
from llamavid.targets import Target, dotted

RECORD, README = "build.json", "BUILD.txt"


def write_package(bundle: Bundle, target: Target, folder: Path, *, command: str) -> None:
    """Writes the package; replaces an older one.

    Args:
        command: that builds in it, to be run with the package as working folder.

    Raises:
        BundleError: `folder` is something else, or cannot be written.
        DeviceError: the disk has no room.
    """
    with staged_folder(folder, replace=True, marker=RECORD, what="a build package") as stage:
        names = [MANIFEST, *bundle.manifest.files]
        _require_room(bundle, stage, names)
        for name in names:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(bundle.folder / name, stage / name)
        record = {
            "format_version": 1,
            "bundle": bundle.digest,
            "target": target.name,
            "device": target.device,
            "capability": dotted(target.capability),
            "library": target.library.value,
            "versions": [dotted(target.first), dotted(target.last)],
            "command": command,
        }
        (stage / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (stage / README).write_text(_readme(bundle, target, command), encoding="utf-8")


def link_or_copy(source: Path, place: Path) -> None:
    """The same file under another name, or a copy where the disk cannot."""
    try:
        os.link(source, place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, place)


def _require_room(bundle: Bundle, stage: Path, names: list[str]) -> None:
    linked = os.stat(stage).st_dev == os.stat(bundle.folder).st_dev
    if not linked:
        need = sum((bundle.folder / name).stat().st_size for name in names)
        require_disk(stage.parent, need, "the package")


def _readme(bundle: Bundle, target: Target, command: str) -> str:
    versions = f"{target.library.product} {dotted(target.first)} to {dotted(target.last)}"
    return (
        f"Builds the engines of {bundle.folder.resolve().name} for {target.name} ({target.device}, "
        f"compute capability {dotted(target.capability)}) with {versions}.\n"
        f"Copy this folder there, install llamavid, and run in it:\n\n    {command}\n"
    )
