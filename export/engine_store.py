"""Engines between the build and the set: one is kept as soon as it is whole, so that an interrupted build
goes on where it was.

    BUNDLE/engines/.built-TARGET/vision-0123456789abcdef.engine       named by what it depends on
                                 vision-0123456789abcdef.engine.json  its size and sha256

A build looks first in the set that is there, then here. What is found is checked byte by byte: an engine
is executable content, wherever it lay.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamavid.bundle import FileEntry, check_file
from llamavid.config import dataclass_from_json
from llamavid.engines import EngineSet
from llamavid.errors import BundleError, DeviceError
from llamavid.export.preflight import gib
from llamavid.replacing import replacing

_BLOCK = 1 << 24  # bytes


@dataclass(frozen=True)
class StoredEngine:
    """A whole engine on disk."""

    path: Path
    content: FileEntry


@dataclass(frozen=True)
class EngineStore:
    """What there is, and where the next goes.

    Args:
        existing: the set that this build replaces; None where there is none, or none to be trusted.
    """

    folder: Path
    existing: EngineSet | None

    def find(self, name: str) -> StoredEngine | None:
        """The engine of that name, every byte of it as it was written."""
        if self.existing is not None:
            for entry in self.existing.manifest.engines.values():  # an opened set is checked
                if entry.file == name:
                    return StoredEngine(self.existing.folder / name, entry.content)
        return self._kept(name)

    def add(self, name: str, data: Any) -> StoredEngine:
        """Keeps an engine. `data` is bytes-like.

        Raises:
            DeviceError: the disk is full; nothing of it stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        view = memoryview(data)
        digest = hashlib.sha256()
        try:
            with replacing(self.folder / name) as beside:
                with beside.open("wb") as stream:
                    for start in range(0, len(view), _BLOCK):
                        block = view[start : start + _BLOCK]
                        digest.update(block)
                        stream.write(block)
                content = FileEntry(len(view), digest.hexdigest())
                self._record(name).write_text(json.dumps(dataclasses.asdict(content)), encoding="utf-8")
        except OSError as error:
            raise self._full(name, len(view), error) from error
        return StoredEngine(self.folder / name, content)

    def clear(self) -> None:
        """Forgets all: the set has them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _kept(self, name: str) -> StoredEngine | None:
        try:
            content = dataclass_from_json(FileEntry, json.loads(self._record(name).read_bytes()))
            check_file(self.folder, name, content)
        except (FileNotFoundError, ValueError, BundleError):  # not there, or a build ended within it
            return None
        return StoredEngine(self.folder / name, content)

    def _full(self, name: str, size: int, error: OSError) -> DeviceError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return DeviceError(
                f"the disk is full: {name} of {gib(size)} does not fit into {self.folder.parent}",
                next_step="Free some and run it again: engines that are built already are kept.",
            )
        return DeviceError(f"{self.folder / name} cannot be written ({error.strerror})")
