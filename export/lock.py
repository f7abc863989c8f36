"""A file that one process at a time holds: two builds of one thing never write at once.

The lock is the kernel's: it ends with its process, however that ends. The file stays, with the number of
the process that held it last.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamavid.errors import DeviceError


@contextmanager
def locked(file: Path, what: str, *, wait: bool) -> Iterator[None]:
    """Holds `file` while the block runs.

    Args:
        what: it is that one process alone may do; for the error.
        wait: until the other is through; otherwise fail at once.

    Raises:
        DeviceError: another process holds it, with its number.
    """
    with file.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.seek(0)
            other = stream.read(20).strip() or "of unknown number"
            raise DeviceError(
                f"process {other} is at work on {what}", next_step="Let it finish, or pass --wait."
            ) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
