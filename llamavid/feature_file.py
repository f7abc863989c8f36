"""A long video as a file: its features and what was said, encoded once and asked about anywhere.

The layout is safetensors (8 bytes of length, a JSON header, bytes) with one tensor, `features`, and our
words in the header's metadata. Read and written here with NumPy alone, because a device has no more; the
file is untrusted, and nothing in it is believed before it is checked.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamavid.config import VisionConfig
from llamavid.errors import SourceError, UsageError
from llamavid.replacing import replacing

FORMAT, VERSION = "llamavid-features", 1
MAX_HEADER_BYTES = 1 << 26  # a day at a frame a second needs 4 MB

_LENGTH = struct.Struct("<Q")
_FLOAT16 = np.dtype("<f2")
_BLOCK = 64  # frames checked at once: 46 MB
_AGAIN = "Make it again with `llamavid features`."


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """A video's features and its words. T frames; R = N patches, one row more with the class token."""

    features: npt.NDArray[np.float16]  # [T, R, C]; of a read file: mapped, read-only
    has_class_token: bool  # row 0 of each frame
    bundle_digest: str  # of the bundle that encoded the frames; "" where another program did
    frame_indices: tuple[int, ...]  # positions in the video, from 0
    pts_seconds: tuple[float, ...]
    subtitles: tuple[str, ...]  # what is said after each frame

    def __post_init__(self) -> None:
        """Raises `ValueError` where the parts do not fit together."""
        if self.features.ndim != 3 or self.features.size == 0 or self.features.dtype != _FLOAT16:
            raise ValueError(f"features are {self.features.dtype} {list(self.features.shape)}")
        for name in ("frame_indices", "pts_seconds", "subtitles"):
            if len(getattr(self, name)) != len(self.features):
                raise ValueError(f"{len(getattr(self, name))} {name} for {len(self.features)} frames")
        if not all(map(math.isfinite, self.pts_seconds)):
            raise ValueError("a time that is not finite")
        for at in range(0, len(self.features), _BLOCK):
            if not np.isfinite(self.features[at : at + _BLOCK]).all():
                raise ValueError(f"a feature that is not finite, in frames {at} to {at + _BLOCK - 1}")
            release_pages(self.features)


def write_features(path: Path, stored: StoredFeatures) -> None:
    """Writes the file, whole or not at all.

    Raises:
        UsageError: `path` is something else than stored features, which is not replaced.
        OSError: the disk is full or may not be written.
    """
    check_replaceable(path)
    with replacing(path) as beside, beside.open("wb") as file:
        file.write(_header(stored))
        for at, frame in enumerate(stored.features):
            file.write(np.ascontiguousarray(frame, _FLOAT16).data)
            if at % _BLOCK == 0:
                release_pages(stored.features)


def check_replaceable(path: Path) -> None:
    """Raises `UsageError` when writing features to `path` would destroy anything but features."""
    if path.exists() and not is_feature_file(path):
        raise UsageError(f"{path} exists and holds no features", next_step="Choose another -o.")


def is_feature_file(path: Path | str) -> bool:
    """Whether a file says that it is one of ours. It may be damaged behind its header."""
    try:
        if not Path(path).is_file():  # a pipe must not lose its first bytes
            return False
        with Path(path).open("rb") as file:
            return bool(_read_header(file)["__metadata__"]["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_features(path: Path | str) -> StoredFeatures:
    """Opens and checks stored features; the tensor stays in the file.

    Raises:
        SourceError: the file is missing, damaged, not ours or of a newer version.
    """
    try:
        with Path(path).open("rb") as file:
            header = _read_header(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
        metadata = header["__metadata__"]
        _check_version(metadata)
        shape = _shape(header, size - start)
        features = np.memmap(path, _FLOAT16, "r", start, shape)
        return StoredFeatures(features, **_words(metadata))
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = repr(error) if isinstance(error, (KeyError, TypeError)) else str(error)
        raise SourceError(
            f"{path} holds no stored features that can be used ({said})", next_step=_AGAIN
        ) from error


def check_fits(stored: StoredFeatures, vision: VisionConfig, path: Path | str) -> None:
    """Raises `SourceError` when the features cannot be this encoder's."""
    given = stored.features.shape[1:]
    expected = (vision.patches + stored.has_class_token, vision.width)
    if given != expected:
        raise SourceError(
            f"{path} has features of {given[0]} x {given[1]} a frame",
            expected=f"{expected[0]} x {expected[1]}, which the bundle's encoder makes",
            next_step="Make it again with this bundle.",
        )


def release_pages(features: npt.NDArray[np.generic]) -> None:
    """Of mapped features: what was read stays in the page cache, and no longer counts as this process's."""
    mapped = getattr(features, "_mmap", None)
    if mapped is not None and getattr(features, "mode", "") == "r" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _header(stored: StoredFeatures) -> bytes:
    size = stored.features.size * _FLOAT16.itemsize
    words = {
        "class_token": stored.has_class_token,
        "frame_indices": stored.frame_indices,
        "pts_seconds": stored.pts_seconds,
        "subtitles": stored.subtitles,
    }
    header = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "bundle_digest": stored.bundle_digest,
            **{name: json.dumps(value) for name, value in words.items()},
        },
        "features": {"dtype": "F16", "shape": stored.features.shape, "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensor begins at a multiple of 8 bytes
    if len(text) > MAX_HEADER_BYTES:
        raise UsageError(f"{len(stored.features)} frames with their words", expected="a shorter video")
    return _LENGTH.pack(len(text)) + text


def _read_header(file: BinaryIO) -> dict[str, Any]:
    """Leaves the file at the first byte of data. Raises `ValueError` for what is no safetensors file."""
    length = file.read(_LENGTH.size)
    if len(length) < _LENGTH.size or _LENGTH.unpack(length)[0] > MAX_HEADER_BYTES:
        raise ValueError("no safetensors header")
    text = file.read(_LENGTH.unpack(length)[0])
    if len(text) < _LENGTH.unpack(length)[0]:
        raise ValueError("the header is cut off")
    return _json(text.decode(), dict)


def _check_version(metadata: dict[str, str]) -> None:
    if metadata["format"] != FORMAT:
        raise ValueError(f"format {metadata['format']!r}, not {FORMAT!r}")
    if metadata["version"] != str(VERSION):
        raise ValueError(f"version {metadata['version']!r}, and this program reads {VERSION}")


def _shape(header: dict[str, Any], data_bytes: int) -> tuple[int, ...]:
    """[T, R, C], when the header describes exactly the bytes that are there."""
    tensors = sorted(set(header) - {"__metadata__"})
    if tensors != ["features"]:
        raise ValueError(f"tensors {tensors}, not features alone")
    entry = header["features"]
    shape = entry["shape"]
    if entry["dtype"] != "F16" or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"{entry['dtype']} {shape}, not F16 [T, R, C]")
    size = math.prod(shape) * _FLOAT16.itemsize
    if entry["data_offsets"] != [0, size] or data_bytes != size:
        raise ValueError(f"{data_bytes} bytes of data at {entry['data_offsets']}, not {size}")
    return tuple(shape)


def _words(metadata: dict[str, str]) -> dict[str, Any]:
    """The fields of `StoredFeatures` but the tensor."""
    return {
        "has_class_token": _json(metadata["class_token"], bool),
        "bundle_digest": str(metadata["bundle_digest"]),
        "frame_indices": _tuple_of(int, metadata["frame_indices"]),
        "pts_seconds": _tuple_of(float, metadata["pts_seconds"]),
        "subtitles": _tuple_of(str, metadata["subtitles"]),
    }


def _tuple_of(kind: type, text: str) -> tuple[Any, ...]:
    items = _json(text, list)
    if any(type(item) is not kind for item in items):
        raise ValueError(f"a list that does not hold {kind.__name__} alone")
    return tuple(items)


def _json(text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} in place of {kind.__name__}")
    return value
