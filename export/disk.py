"""An hour of writing should not end in a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from llamavid.errors import DeviceError

_SMALL_FILES_BYTES = 20_000_000  # tokenizers, headers, configurations


def require_disk(
    folder: Path, needed_bytes: int, what: str, *, next_step: str = "Make room, or choose another -o."
) -> None:
    """Raises `DeviceError` where `folder`'s disk has less room than `what` needs; nothing needs none."""
    free, needed = shutil.disk_usage(folder).free, needed_bytes + _SMALL_FILES_BYTES
    if needed_bytes and needed > free:
        raise DeviceError(
            f"{folder} has {free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB for {what}",
            next_step=next_step,
        )
