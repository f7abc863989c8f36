"""Features of whole files, kept in a folder between processes: a second question finds the video encoded.

    cache = FeatureCache(default_folder(), quota_bytes=20 << 30)
    key = feature_key(bundle, "clip.mp4", fps=1.0)
    stored = cache.get(key) or cache.put(key, encoded)

A cache never decides an answer and never fails one: what is damaged or gone is computed again, what cannot be
written is not kept, and `notes` says so. Knows nothing about encoding.

Note [Cache entries]
    An entry is one feature file named `<key>-<sha256 of its bytes>.safetensors`. It is written under a hidden
    name and renamed, and its hash is checked before it is read, so half an entry or a flipped bit is never
    believed. Its modification time is when it was last used; the least recently used go when the quota is
    passed. Processes share a folder without a lock: entries appear and vanish whole, one that is being read
    stays readable after it is removed, and two that write at once may each remove the other's entry, which
    costs time and no more. Only names of this form are counted or removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
import time
from pathlib import Path

from llamavid.bundle import Bundle, file_sha256
from llamavid.errors import SourceError, UsageError
from llamavid.feature_file import StoredFeatures, read_features, write_features

QUOTA_BYTES = 10 << 30  # four hours at a frame a second: 0.72 MB a frame of EVA ViT-g
RECIPE = 1  # raised whenever frames are chosen, or pixels made, in another way: old entries no longer match

_ENTRY = re.compile(r"([0-9a-f]{64})-([0-9a-f]{64})\.safetensors")
_UNFINISHED = re.compile(r"\.+[0-9a-f]{64}\.[0-9a-f]{16}\.unfinished(\.\d+)?")
_ABANDONED_SECONDS = 3600  # a writer's file changes all the time; one that does not has no writer


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/llamavid`, or `~/.cache/llamavid`. Raises `UsageError` where there is no home."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache"  # the XDG rule
    except RuntimeError as error:
        raise UsageError("there is no home folder for a cache", next_step="Name a folder.") from error
    return base / "llamavid"


def feature_key(bundle: Bundle, video: Path | str, *, fps: float) -> str:
    """What makes features these and no others, as 64 hexadecimal digits.

    The video's bytes, the encoder's, how frames are chosen and prepared, and the precision. Reads all of
    `video`, which must be a regular file or a folder of pictures.
    """
    graph, manifest = bundle.manifest.graphs["vision"], bundle.manifest
    identity = {
        "recipe": RECIPE,
        "video": _video_sha256(Path(video)),
        "encoder": [manifest.files[name].sha256 for name in graph.files],
        "precision": [graph.precision, "float16"],  # computed in, stored in
        "preprocessing": dataclasses.asdict(manifest.model.preprocessing),
        "fps": float(fps),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _video_sha256(video: Path) -> str:
    """Of a folder: of its files' names and bytes."""
    if not video.is_dir():
        return file_sha256(video)
    files = sorted(file for file in video.iterdir() if file.is_file())
    return hashlib.sha256(json.dumps([[file.name, file_sha256(file)] for file in files]).encode()).hexdigest()


class FeatureCache:
    """A folder of feature files within a quota. Any number of processes may use it at once."""

    def __init__(self, folder: Path | str, *, quota_bytes: int = QUOTA_BYTES) -> None:
        """The folder is made when the first entry is. `notes` are one-sentence remarks for the user."""
        self.folder, self.quota_bytes = Path(folder), quota_bytes
        self.notes: list[str] = []

    def get(self, key: str) -> StoredFeatures | None:
        """The entry, mapped from its file; None where there is none that can be trusted."""
        for path in self._entries(key):
            try:
                stored = _checked(path)
                os.utime(path)
                return stored
            except FileNotFoundError:  # another process needed the room
                continue
            except SourceError as error:
                self.notes.append(f"A damaged cache entry was removed: {error.given}.")
                self._remove(path)
            except OSError as error:
                self.notes.append(f"The cache entry {path} cannot be read ({error.strerror}).")
        return None

    def put(self, key: str, stored: StoredFeatures) -> StoredFeatures:
        """Keeps features under a key, unless there is no room. Gives them as a later `get` will."""
        assert re.fullmatch("[0-9a-f]{64}", key), f"{key!r} is no key"
        size = stored.features.nbytes
        if size > self.quota_bytes:
            self.notes.append(
                f"The features are not kept: they take {size / 1e6:,.1f} MB, and the cache may take "
                f"{self.quota_bytes / 1e6:,.1f} MB."
            )
            return stored
        unfinished = self.folder / f".{key}.{secrets.token_hex(8)}.unfinished"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # features tell what a video shows
            self._make_room(size)
            write_features(unfinished, stored)
            path = self.folder / f"{key}-{file_sha256(unfinished)}.safetensors"
            unfinished.replace(path)
            kept = _mapped(path)
            self._make_room(0, spare=path)
            return kept
        except FileNotFoundError:  # another process needed the room at once
            return stored
        except OSError as error:
            self.notes.append(f"The features are not kept in {self.folder} ({error.strerror}).")
            return stored
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink()

    def size_bytes(self) -> int:
        """What the entries take, and those that are being written."""
        return sum(size for _, size, _ in self._listed(_ENTRY) + self._listed(_UNFINISHED))

    def _entries(self, key: str) -> list[Path]:
        """Of one key, the last used first. There may be two: encoders that run in parallel differ in bits."""
        return [path for _, _, path in reversed(self._listed(_ENTRY)) if path.name.startswith(f"{key}-")]

    def _make_room(self, needed: int, *, spare: Path | None = None) -> None:
        """Removes what is abandoned, then the least recently used, until `needed` bytes more fit."""
        for used_seconds, _, path in self._listed(_UNFINISHED):
            if time.time() - used_seconds > _ABANDONED_SECONDS:
                self._remove(path)
        over = self.size_bytes() + needed - self.quota_bytes
        for _, size, path in self._listed(_ENTRY):
            if over <= 0:
                return
            if path != spare:
                self._remove(path)
                over -= size

    def _listed(self, name: re.Pattern[str]) -> list[tuple[float, int, Path]]:
        """(last used, in seconds; bytes; path) of files with such a name, the least recently used first."""
        try:
            names = os.listdir(self.folder)
        except OSError:  # no folder yet; where it cannot be one, `put` says so
            return []
        found = []
        for path in (self.folder / each for each in names if name.fullmatch(each)):
            with contextlib.suppress(FileNotFoundError):  # another process removed it meanwhile
                status = path.lstat()
                found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self.notes.append(f"The cache entry {path} cannot be removed ({error.strerror}).")


def _checked(path: Path) -> StoredFeatures:
    """Raises `SourceError` for an entry that is not what was written, `OSError` for one out of reach."""
    match = _ENTRY.fullmatch(path.name)
    assert match is not None, f"{path} is no entry's name"
    if file_sha256(path) != match[2]:
        raise SourceError(f"{path} is not what was written")
    return _mapped(path)


def _mapped(path: Path) -> StoredFeatures:
    """As `_checked`, of bytes that are known to be right."""
    try:
        return read_features(path)
    except SourceError as error:
        if isinstance(error.__cause__, OSError):  # removed by another process meanwhile: not damaged
            raise error.__cause__ from None
        raise
