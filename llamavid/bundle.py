"""The bundle: a folder that holds a model ready to run, and the manifest that vouches for it.

    manifest.json    format version, dimensions, the contract of every graph, sha256 of every file,
                     what built it and how far each graph was from PyTorch

Writing happens beside the target and ends in one rename. Opening checks the
format version, that every path stays inside, and every byte's hash before
anything is deserialized. Knows nothing about what the graphs compute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llamavid.config import ModelConfig, dataclass_from_json
from llamavid.contract import GraphContract
from llamavid.errors import BundleError

FORMAT_VERSION = 2
_READABLE = (1, 2)  # 1: one language graph, and no graph names its weights
MANIFEST = "manifest.json"
LANGUAGE_TOKENIZER, QUESTION_VOCABULARY = "tokenizer.model", "vocab.txt"
EMBEDDINGS = "embeddings.npy"  # float [V, D], the language model's input table
FRAME_GRAPHS = ("vision", "content", "context")
GRAPHS = (*FRAME_GRAPHS, "llm")  # what answers; a bundle may hold more, to build engines of

_MANIFEST_LIMIT = 16 << 20  # bytes; ours are some 100 kB
_REEXPORT = "Copy the bundle again, or make it again with `llamavid export`."


@dataclass(frozen=True)
class ParityRow:
    """How far one output of one graph is from the PyTorch model in float32.

    Errors are relative: the largest difference over the largest value, and the
    norm of the difference over the norm.
    """

    graph: str
    precision: str
    against: str  # what it was compared with
    largest_error: float
    norm_error: float
    tolerance: float | None  # of norm_error; None = measured, not judged
    reason: str  # for the tolerance

    @property
    def passed(self) -> bool:
        if self.tolerance is None:
            return math.isfinite(self.norm_error)
        return self.norm_error <= self.tolerance  # False for NaN


@dataclass(frozen=True)
class GraphEntry:
    """One ONNX graph of the bundle."""

    file: str
    precision: str
    contract: GraphContract
    weights: str | None = None  # its data file, which graphs may share; None: FILE.data

    @property
    def weights_file(self) -> str:
        return self.weights or f"{self.file}.data"

    @property
    def files(self) -> tuple[str, str]:
        """All that it consists of."""
        return self.file, self.weights_file


@dataclass(frozen=True)
class FileEntry:
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that the runtime needs to know before it opens a file."""

    format_version: int
    model: ModelConfig
    template: str
    graphs: dict[str, GraphEntry]
    parity: tuple[ParityRow, ...]
    built_with: dict[str, str]  # package -> version, and the checkpoint's name
    files: dict[str, FileEntry]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle."""

    folder: Path
    manifest: Manifest
    digest: str  # sha256 of the manifest, which names every file's: the bundle's identity

    def path(self, name: str) -> Path:
        """The file of that name. Raises `BundleError` for a name that the manifest does not list."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} lists no {name}", next_step=_REEXPORT)
        return self.folder / name


def open_bundle(folder: Path | str) -> Bundle:
    """Opens a bundle and checks every byte of it.

    Raises:
        BundleError: it is missing, damaged, unsafe or of a newer format.
    """
    folder = Path(folder)
    text = _manifest_text(folder)
    manifest = _manifest(text, folder)
    for name in manifest.files:
        check_inside(folder, name)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        # Largest first: the wall time is the largest file's when cores allow.
        by_size = sorted(manifest.files.items(), key=lambda item: -item[1].size)
        for future in [pool.submit(check_file, folder, name, entry) for name, entry in by_size]:
            future.result()
    return Bundle(folder, manifest, hashlib.sha256(text).hexdigest())


def _manifest_text(folder: Path) -> bytes:
    file = folder / MANIFEST
    if not file.is_file():
        what = (
            "is not a bundle"
            if folder.is_dir()
            else "does not exist"
            if not folder.exists()
            else "is not a folder"
        )
        raise BundleError(
            f"{folder} {what}",
            expected=f"a folder with {MANIFEST}",
            next_step="Make one with `llamavid export`.",
        )
    if file.stat().st_size > _MANIFEST_LIMIT:
        raise BundleError(
            f"{file} has {file.stat().st_size} bytes",
            expected=f"at most {_MANIFEST_LIMIT}",
            next_step=_REEXPORT,
        )
    return file.read_bytes()


def _manifest(text: bytes, folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        data = json.loads(text)
        version = data["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{file} is damaged ({error!r})", next_step=_REEXPORT) from error
    if version not in _READABLE:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise BundleError(
            f"{folder} has bundle format {version!r:.40}",
            expected=" or ".join(map(str, _READABLE)),
            next_step="Upgrade llamavid." if newer else _REEXPORT,
        )
    try:
        manifest = dataclass_from_json(Manifest, data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is damaged ({error})", next_step=_REEXPORT) from error
    absent = [graph for graph in GRAPHS if graph not in manifest.graphs]
    if absent:
        raise BundleError(
            f"{file} describes no graph {absent[0]!r}", expected=", ".join(GRAPHS), next_step=_REEXPORT
        )
    _check_parity(manifest, file)
    unlisted = sorted(_needed(manifest) - set(manifest.files))
    if unlisted:
        raise BundleError(f"{file} does not vouch for {unlisted[0]!r}", next_step=_REEXPORT)
    return manifest


def _check_parity(manifest: Manifest, file: Path) -> None:
    """A graph that nobody compared, or that failed, does not answer."""
    for graph in manifest.graphs:
        rows = [row for row in manifest.parity if row.graph == graph]
        if not rows or not all(row.passed for row in rows):
            what = "failed its comparison" if rows else "was never compared"
            raise BundleError(f"{file}: graph {graph!r} {what} with PyTorch", next_step=_REEXPORT)


def _needed(manifest: Manifest) -> set[str]:
    """The files that the runtime and TensorRT's builder read; graphs may share weights."""
    graphs = {file for entry in manifest.graphs.values() for file in entry.files}
    return {EMBEDDINGS, LANGUAGE_TOKENIZER, QUESTION_VOCABULARY} | graphs


def check_inside(folder: Path, name: str, *, of: str = MANIFEST, next_step: str = "") -> None:
    """Raises `BundleError` unless `name`, which the JSON file `of` gave, is a file's inside the folder."""
    path = PurePosixPath(name)
    escapes = path.is_absolute() or ".." in path.parts or not path.parts
    escapes = escapes or "\\" in name or not name.isprintable()
    try:
        escapes = escapes or folder.resolve() not in (folder / path).resolve().parents
    except (OSError, RuntimeError):  # a name that is too long, a circle of links
        escapes = True
    if escapes:
        raise BundleError(
            f"{folder / of} names {name!r}",
            expected="a file inside the bundle",
            next_step=f"Do not trust this bundle. {next_step or _REEXPORT}",
        )


def check_file(folder: Path, name: str, entry: FileEntry, *, next_step: str = _REEXPORT) -> None:
    """Raises `BundleError` unless the file has that size and sha256."""
    file = folder / name
    if not os.path.isfile(file):  # unlike Path.is_file, no error where a name is too long
        raise BundleError(f"{file} is missing", expected=f"{entry.size} bytes", next_step=next_step)
    size = file.stat().st_size
    if size != entry.size:
        raise BundleError(f"{file} has {size} bytes", expected=f"{entry.size}", next_step=next_step)
    found = file_sha256(file)
    if found != entry.sha256:
        raise BundleError(
            f"{file} has sha256 {found[:12]}...", expected=f"{entry.sha256[:12]}...", next_step=next_step
        )


def file_sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, **fields: object) -> Manifest:
    """Hashes every file in `folder` and writes the manifest that lists them.

    Args: the fields of `Manifest` but `format_version` and `files`.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    files = {name: FileEntry((folder / name).stat().st_size, file_sha256(folder / name)) for name in names}
    manifest = Manifest(format_version=FORMAT_VERSION, files=files, **fields)  # type: ignore[arg-type]
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


@contextlib.contextmanager
def staged_folder(
    target: Path, *, replace: bool = False, marker: str = MANIFEST, what: str = "a bundle"
) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends well, and vanishes when it does not.

    Args:
        marker: the JSON file by which an older one is known, for it to be replaced.
        what: it is.

    Raises:
        BundleError: `target` exists and may not be replaced, or its folder cannot be written.
    """
    target = target.resolve()  # a link's bundle is replaced where it lies
    if target.exists() and not replace:
        raise BundleError(f"{target} exists already", next_step="Choose another -o, or pass --replace.")
    if target.exists() and not is_replaceable(target, marker):
        raise BundleError(f"{target} holds something that is not {what}", next_step="Choose another -o.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        replaced = stage.with_name(stage.name + ".replaced")
    except OSError as error:
        raise BundleError(
            f"{target.parent} cannot be written ({error.strerror})", next_step="Choose another -o."
        ) from error
    try:
        yield stage
        stage.chmod(0o755)
        if target.exists():  # aside first: a folder that holds something is not renamed over
            target.rename(replaced)
        stage.rename(target)
    finally:
        if replaced.exists() and not target.exists():  # ended between the two: what was there stays
            replaced.rename(target)
        shutil.rmtree(stage, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def is_replaceable(target: Path, marker: str) -> bool:
    """An empty folder, or one whose marker is ours: many other things have a manifest.json."""
    if not target.is_dir():
        return False
    if not any(target.iterdir()):
        return True
    try:
        manifest = json.loads((target / marker).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and "format_version" in manifest
