"""Engine sets: what `build` makes of a bundle's graphs for one device, and the stamp that lets them answer.

    BUNDLE/engines/TARGET/engines.json    what they are made of, for and by; every engine's sha256
                          vision.engine   and so on
                          stamp.json      written by `verify` alone: they agreed with the model here

An engine is executable content. So all that can be said without deserializing it is checked before: whose
bundle it is of, every byte, the library's version, the device, and that this very set has passed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llamavid.bundle import Bundle, FileEntry, ParityRow, check_file, check_inside
from llamavid.config import dataclass_from_json
from llamavid.contract import GraphContract, Lowering
from llamavid.errors import BundleError, DeviceError, ParityError
from llamavid.replacing import replacing
from llamavid.targets import Capability, Library, dotted, version_of

FOLDER, ENGINES, STAMP = "engines", "engines.json", "stamp.json"
FORMAT_VERSION = 1
_JSON_LIMIT = 16 << 20  # bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine takes: of each input the smallest, the one it is tuned for, the largest."""

    name: str  # frames, prefill or decode
    smallest: dict[str, tuple[int, ...]]
    tuned: dict[str, tuple[int, ...]]
    largest: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class EngineEntry:
    """One engine."""

    file: str
    graph: str  # of the bundle's manifest: vision, content, context, llm.static or llm.primitive
    precision: str
    contract: GraphContract
    profiles: tuple[Profile, ...]
    content: FileEntry


@dataclass(frozen=True)
class EngineManifest:
    """What `engines.json` says."""

    format_version: int
    bundle: str  # its digest: sha256 of its manifest
    target: str
    library: Library
    version: str  # of the library
    capability: tuple[int, int]
    lowering: Lowering
    version_compatible: bool
    hardware_compatible: bool
    built_with: dict[str, str]  # driver, CUDA, operating system, processor, llamavid
    settings: dict[str, str]  # the rest of the build's configuration, as it was printed
    engines: dict[str, EngineEntry]  # by stage: vision, content, context, llm

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Stamp:
    """What `stamp.json` says: this set, on that device, was so far from the model."""

    format_version: int
    engines: str  # sha256 of engines.json
    device: str
    driver: str
    library_version: str
    capability: tuple[int, int]
    rows: tuple[ParityRow, ...]  # all passed

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Device:
    """A GPU, and what is there to run engines on it."""

    name: str
    capability: Capability
    driver: str
    library: Library
    version: str  # of the library
    memory_bytes: int  # free now


@dataclass(frozen=True)
class EngineSet:
    """An opened set, every byte of which is as `engines.json` says. Not yet allowed to answer."""

    folder: Path
    manifest: EngineManifest
    digest: str  # sha256 of engines.json

    def path(self, stage: str) -> Path:
        return self.folder / self.manifest.engines[stage].file


def engine_sets(bundle: Bundle) -> tuple[str, ...]:
    """Names of the targets that there is a folder for."""
    names = (file.parent.name for file in bundle.folder.glob(f"{FOLDER}/*/{ENGINES}"))
    return tuple(sorted(name for name in names if not name.startswith(".")))  # not one in the making


def open_engines(bundle: Bundle, target: str) -> EngineSet:
    """Opens a set and checks every byte of it.

    Raises:
        BundleError: it is missing, damaged, unsafe, or made of another bundle.
    """
    folder = bundle.folder / FOLDER / target
    again = f"Run: llamavid build {bundle.folder} --target {target}."
    if not (folder / ENGINES).is_file():
        sets = ", ".join(engine_sets(bundle)) or "none"
        raise BundleError(f"{bundle.folder} has no engines for {target}; it has: {sets}", next_step=again)
    manifest, digest = _read(EngineManifest, folder / ENGINES, again)
    if manifest.bundle != bundle.digest:
        raise BundleError(f"{folder} was built from another bundle than {bundle.folder}", next_step=again)
    for entry in manifest.engines.values():
        check_inside(folder, entry.file, of=ENGINES, next_step=again)
        check_file(folder, entry.file, entry.content, next_step=again)
    return EngineSet(folder, manifest, digest)


def require_device(engines: EngineSet, device: Device) -> None:
    """Raises `DeviceError` unless the set was built for that device and library.

    To be called before anything is deserialized: what is wrong there can crash, or run and be wrong.
    """
    manifest = engines.manifest
    again = f"Build it again here: llamavid build {engines.folder.parent.parent} --target this."
    if device.library is not manifest.library:
        raise DeviceError(
            f"{engines.folder} is for {manifest.library.product}; {device.library.product} is installed",
            next_step=again,
        )
    if not _same_version(manifest, device):
        raise DeviceError(
            f"{engines.folder} was built by {manifest.library.product} {manifest.version}",
            expected=f"{device.version}, which is installed",
            next_step=again,
        )
    if not _same_device(manifest, device):
        raise DeviceError(
            f"{engines.folder} was built for compute capability {dotted(manifest.capability)}",
            expected=f"{dotted(device.capability)}, {device.name}'s",
            next_step=again,
        )


def require_stamp(engines: EngineSet, device: Device) -> Stamp:
    """The set's stamp.

    Raises:
        ParityError: there is none, or it is of another set, device, driver or version.
    """
    bundle, target = engines.folder.parent.parent, engines.manifest.target
    verify = f"Run: llamavid verify {bundle} --target {target}."
    if not (engines.folder / STAMP).is_file():
        raise ParityError(f"{engines.folder} was never compared with the model here", next_step=verify)
    stamp, _ = _read(Stamp, engines.folder / STAMP, verify)
    found = (stamp.engines, stamp.device, stamp.driver, stamp.library_version, stamp.capability)
    wanted = (engines.digest, device.name, device.driver, device.version, device.capability)
    names = ("engines", "device", "driver", "library's version", "compute capability")
    for name, a, b in zip(names, found, wanted, strict=True):
        if a != b:
            raise ParityError(
                f"the stamp of {engines.folder} is of another {name}",
                expected=str(b) if name != "engines" else "the engines that are there",
                next_step=verify,
            )
    if not stamp.rows or not all(row.passed for row in stamp.rows):
        raise ParityError(f"the stamp of {engines.folder} holds no passed comparison", next_step=verify)
    return stamp


def write_stamp(engines: EngineSet, device: Device, rows: Iterable[ParityRow]) -> Stamp:
    """Stamps the set. Raises `ParityError` and takes an old stamp away where a row did not pass."""
    rows = tuple(rows)
    file = engines.folder / STAMP
    file.unlink(missing_ok=True)
    failed = [row for row in rows if not row.passed]
    if failed or not rows:
        named = ", ".join(sorted({row.graph for row in failed})) or "nothing compared"
        raise ParityError(f"{engines.folder} differs from the model: {named}")
    stamp = Stamp(
        FORMAT_VERSION, engines.digest, device.name, device.driver, device.version, device.capability, rows
    )
    with replacing(file) as beside:
        beside.write_text(stamp.to_json(), encoding="utf-8")
    return stamp


def graph_digest(bundle: Bundle, graph: str) -> str:
    """sha256 over the graph's file and its weights': what an engine depends on, by the bundle's manifest."""
    entry = bundle.manifest.graphs[graph]
    hashes = (bundle.manifest.files[name].sha256 for name in entry.files)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _read(cls: type[T], file: Path, next_step: str) -> tuple[T, str]:
    """What a JSON file says, and its sha256."""
    if file.stat().st_size > _JSON_LIMIT:
        raise BundleError(f"{file} has {file.stat().st_size} bytes", expected=f"at most {_JSON_LIMIT}")
    text = file.read_bytes()
    try:
        data = json.loads(text)
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version!r:.40}, not {FORMAT_VERSION}")
        return dataclass_from_json(cls, data), hashlib.sha256(text).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{file} is damaged ({error})", next_step=next_step) from error


def _same_version(manifest: EngineManifest, device: Device) -> bool:
    """Built so, an older plan runs on a newer library; never the other way (facts/deployment section 2)."""
    if manifest.version_compatible:
        return version_of(manifest.version) <= version_of(device.version)
    return manifest.version == device.version


def _same_device(manifest: EngineManifest, device: Device) -> bool:
    if manifest.hardware_compatible:
        return (8, 0) <= manifest.capability <= device.capability
    return manifest.capability == device.capability
