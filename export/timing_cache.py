"""The timing cache: what a library measured while it chose kernels, kept for the next build.

    cache = TimingCacheFile(file, merged)
    measured = build(cache.read())
    cache.add(measured)

Several builds may share one file: each adds to what the others wrote meanwhile. It saves time and decides
nothing, so a cache that cannot be kept is a remark, not an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamavid.export.lock import locked
from llamavid.replacing import replacing

_LIMIT = 1 << 30  # bytes; one of a large model has some megabytes

Merge = Callable[[bytes, bytes], bytes]  # theirs on disk, ours -> both


@dataclass(frozen=True)
class TimingCacheFile:
    """One file, of one library, version and device."""

    file: Path
    merge: Merge

    def read(self) -> bytes:
        """Empty where there is none yet."""
        if not self.file.is_file() or self.file.stat().st_size > _LIMIT:
            return b""
        return self.file.read_bytes()

    def add(self, measured: bytes) -> None:
        """Raises `OSError` where it cannot be written; the file is then as it was."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = self.file.with_name(f".{self.file.name}.lock")
        with locked(lock, str(self.file), wait=True):
            there = self.read()
            both = self.merge(there, measured) if there else measured
            with replacing(self.file) as beside:
                beside.write_bytes(both)
