"""Named arrays in a file: an npz whose bytes are those of its numbers, read without pickles."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.errors import ScalesError
from llamavid.replacing import replacing

# What Python's zipfile and NumPy raise of damaged files; of an array alone, which is no npz, TypeError.
UNREADABLE = (
    *(ValueError, KeyError, EOFError, OSError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, TypeError),
)


def write_arrays(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Written beside and renamed. `np.savez` would put the time in. Raises `OSError`."""
    with replacing(file) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(arrays[name]), allow_pickle=False)


def read_arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Raises `ScalesError` where the file is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UNREADABLE as error:
        raise ScalesError(
            f"{file} cannot be read ({error})", next_step="Start anew with --replace."
        ) from error
