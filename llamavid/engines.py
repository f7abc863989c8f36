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
import platform
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llamavid.bundle import GRAPHS, Bundle, FileEntry, ParityRow, check_file, check_inside
from llamavid.config import MAX_DIMENSION, dataclass_from_json
from llamavid.contract import GraphContract, Lowering
from llamavid.errors import BundleError, DeviceError, ParityError
from llamavid.replacing import replacing
from llamavid.targets import THIS, Capability, Library, dotted, version_of

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

    def __post_init__(self) -> None:
        """Raises `ValueError` for shapes that are not of the same inputs, or do not rise."""
        shapes = (self.smallest, self.tuned, self.largest)
        if len({tuple(sorted(each)) for each in shapes}) != 1:
            raise ValueError(f"profile {self.name!r} is not of the same inputs throughout")
        for name in self.smallest:
            dims = [each[name] for each in shapes]
            rising = all(1 <= a <= b <= c < MAX_DIMENSION for a, b, c in zip(*dims, strict=False))
            if len({len(shape) for shape in dims}) != 1 or not rising:
                raise ValueError(
                    f"profile {self.name!r} has {name!r} from {dims[0]} by {dims[1]} to {dims[2]}"
                )


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

    @property
    def bundle_folder(self) -> Path:
        return self.folder.parent.parent

    def path(self, stage: str) -> Path:
        return self.folder / self.manifest.engines[stage].file


def command(name: str, bundle: Path, target: str) -> str:
    """`llamavid build` or `verify`, as it is to be typed."""
    return shlex.join(["llamavid", name, str(bundle), "--target", target])


def engine_sets(bundle: Bundle) -> tuple[str, ...]:
    """Names of the targets that there is a folder for."""
    files = bundle.folder.glob(f"{FOLDER}/*/{ENGINES}")
    return tuple(sorted(file.parent.name for file in files if _is_a_set(file)))


def _is_a_set(file: Path) -> bool:
    return file.is_file() and not file.parent.name.startswith(".")  # not one in the making


def open_engines(bundle: Bundle, target: str) -> EngineSet:
    """Opens a set and checks every byte of it.

    Raises:
        BundleError: it is missing, damaged, unsafe, or made of another bundle.
    """
    folder = bundle.folder / FOLDER / target
    again = f"Run: {command('build', bundle.folder, target)}."
    sets = engine_sets(bundle)
    if target not in sets:
        given = f"{bundle.folder} has no engines for {target}; it has: {', '.join(sets) or 'none'}"
        raise BundleError(given, next_step=again)
    manifest, digest = _read(EngineManifest, folder / ENGINES, again)
    if manifest.target != target:
        raise BundleError(f"{folder} holds engines for {manifest.target}", expected=target, next_step=again)
    if manifest.bundle != bundle.digest:
        raise BundleError(f"{folder} was built from another bundle than {bundle.folder}", next_step=again)
    unknown = sorted(set(manifest.engines) - set(GRAPHS))
    if unknown or not manifest.engines:
        stages = ", ".join(map(repr, unknown)) or "nothing"
        raise BundleError(f"{folder} has engines for {stages}", expected=", ".join(GRAPHS), next_step=again)
    for entry in manifest.engines.values():
        check_inside(folder, entry.file, of=ENGINES, next_step=again)
        check_file(folder, entry.file, entry.content, next_step=again)
    return EngineSet(folder, manifest, digest)


def read_engine(engines: EngineSet, stage: str) -> bytes:
    """An engine's bytes, checked again: sessions load it late, and the set may have been built anew since.

    Raises:
        BundleError: the set has none for that stage, or it is not the one that was opened.
    """
    again = f"Run: {command('build', engines.bundle_folder, engines.manifest.target)}."
    require_stages(engines, [stage])
    try:
        plan = engines.path(stage).read_bytes()
    except OSError as error:
        raise BundleError(
            f"{engines.path(stage)} cannot be read ({error.strerror})", next_step=again
        ) from error
    if hashlib.sha256(plan).hexdigest() != engines.manifest.engines[stage].content.sha256:
        raise BundleError(
            f"{engines.path(stage)} has changed since it was opened",
            next_step="Try again; engines that were built anew are to be verified first.",
        )
    return plan


def require_stages(engines: EngineSet, stages: Iterable[str]) -> None:
    """Raises `BundleError` where the set has no engine for one of them."""
    missing = [stage for stage in stages if stage not in engines.manifest.engines]
    if missing:
        raise BundleError(
            f"{engines.folder} has no engine for {', '.join(missing)}; "
            f"it has: {', '.join(engines.manifest.engines)}",
            next_step=f"Run: {command('build', engines.bundle_folder, engines.manifest.target)}.",
        )


def require_device(engines: EngineSet, device: Device) -> None:
    """Raises `DeviceError` unless the set was built for that device and library.

    To be called before anything is deserialized: what is wrong there can crash, or run and be wrong.
    """
    manifest = engines.manifest
    again = f"Build it again here: {command('build', engines.bundle_folder, THIS)}."
    if device.library is not manifest.library:
        raise DeviceError(
            f"{engines.folder} is for {manifest.library.product}; {device.library.product} is installed",
            next_step=again,
        )
    processor = manifest.built_with.get("processor", platform.machine())
    if processor != platform.machine():  # no engine moves to another, however it was built
        raise DeviceError(
            f"{engines.folder} was built on a processor {processor}",
            expected=platform.machine(),
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
    verify = f"Run: {command('verify', engines.bundle_folder, engines.manifest.target)}."
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
    without = _without_a_passed_row(engines, stamp.rows)
    if without:
        raise ParityError(
            f"the stamp of {engines.folder} holds no passed comparison of {', '.join(without)}",
            next_step=verify,
        )
    return stamp


def write_stamp(engines: EngineSet, device: Device, rows: Iterable[ParityRow]) -> Stamp:
    """Stamps the set. Raises `ParityError`, and leaves no stamp, where a row failed or an engine has none."""
    rows = tuple(rows)
    remove_stamp(engines)
    failed = [f"{row.graph} ({row.against})" for row in rows if not row.passed]
    if failed:
        raise ParityError(
            f"{engines.folder} differs from the model in {', '.join(failed)}",
            next_step="It does not answer. Add --bisect to see where it begins.",
        )
    without = _without_a_passed_row(engines, rows)
    if without:
        raise ParityError(f"{engines.folder} was not compared in {', '.join(without)}")
    file = engines.folder / STAMP
    stamp = Stamp(
        FORMAT_VERSION, engines.digest, device.name, device.driver, device.version, device.capability, rows
    )
    with replacing(file) as beside:
        beside.write_text(stamp.to_json(), encoding="utf-8")
    return stamp


def remove_stamp(engines: EngineSet) -> None:
    """Nothing answers by this set until it is verified again."""
    (engines.folder / STAMP).unlink(missing_ok=True)


def _without_a_passed_row(engines: EngineSet, rows: Iterable[ParityRow]) -> list[str]:
    """Graphs of the set that no row is about, or one that did not pass."""
    rows = tuple(rows)
    passed = {row.graph for row in rows if row.passed} - {row.graph for row in rows if not row.passed}
    return sorted({entry.graph for entry in engines.manifest.engines.values()} - passed)


def graph_digest(bundle: Bundle, graph: str) -> str:
    """sha256 over the graph's file and its weights': what an engine depends on, by the bundle's manifest."""
    entry = bundle.manifest.graphs[graph]
    hashes = (bundle.manifest.files[name].sha256 for name in entry.files)
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _read(cls: type[T], file: Path, next_step: str) -> tuple[T, str]:
    """What a JSON file says, and its sha256."""
    if file.stat().st_size > _JSON_LIMIT:
        raise BundleError(
            f"{file} has {file.stat().st_size} bytes", expected=f"at most {_JSON_LIMIT}", next_step=next_step
        )
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
    """Built so, an older plan runs on a newer library, up to the next major version; never the other way, and
    never with TensorRT-RTX (facts/deployment section 2)."""
    if manifest.version_compatible and manifest.library is Library.TENSORRT:
        built, here = version_of(manifest.version), version_of(device.version)
        return bool(built) and built <= here and here[0] <= built[0] + 1
    return manifest.version == device.version


def _same_device(manifest: EngineManifest, device: Device) -> bool:
    if manifest.hardware_compatible and manifest.library is Library.TENSORRT:
        return (8, 0) <= manifest.capability <= device.capability
    return manifest.capability == device.capability
