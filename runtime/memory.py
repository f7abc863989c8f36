"""How much memory there is, asked before it is needed: a number now beats a killed process later."""

from __future__ import annotations

import os
from pathlib import Path

from llamavid.errors import DeviceError
from llamavid.memory import available_memory


def require_memory(needed: int, what: str, next_step: str) -> None:
    """Raises `DeviceError` with both numbers when `needed` bytes are not to be had."""
    available = available_memory()
    if available is not None and needed > available:
        raise DeviceError(
            f"{what} needs {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are available",
            next_step=next_step,
        )


def resident_memory() -> int:
    """Bytes of this process in memory now, mapped files included; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
