"""How much memory this process could still take, as Linux and a container say it.

Note [Cached files]
    A container's count holds the files that were read inside it, up to its very limit: hashing a bundle of
    15 GB leaves as much. The kernel drops them before it kills anyone, so they count as free, as they do in
    MemAvailable. Those of a tmpfs are not among them.
"""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")  # a container's own limit, version 2


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" not in fields:
        return None
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    return max(0, min(available, limit - used + _cached_files()))


def _cached_files() -> int:
    """See Note [Cached files]."""
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        fields = dict(line.split() for line in lines)
        return int(fields["active_file"]) + int(fields["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such limit, or "max"
        return None
