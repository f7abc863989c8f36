"""Weights on disk, read one tensor at a time: `.bin`/`.pth` and `.safetensors`, one file or several.

Files are untrusted: PyTorch files are read with `weights_only`, never a plain
unpickle, and an index may only name files of its own folder. Knows nothing about
what the tensors mean.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamavid.errors import CheckpointError

# Pages of a mapped file stay with the process until it is unmapped, so a file is unmapped after this
# many bytes were handed out, and when another is read: reading 13 GB of shards costs 0.5 GiB, not 13.
_UNMAP_BYTES = 1 << 29

_WRAPPERS = ("model", "state_dict", "module")  # InstructBLIP's file is a dict under `model`
_BIN_INDEX, _SAFE_INDEX = "pytorch_model.bin.index.json", "model.safetensors.index.json"


class TensorFile:
    """One file of named tensors, memory-mapped and read lazily."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError` when the file is missing, damaged or holds anything but tensors."""
        self.path = path
        self._mapped: dict[str, Tensor] = {}
        self._handed_out = 0  # bytes since the file was mapped
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._map().items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def glimpse(self, name: str, count: int) -> Tensor:
        """`count` numbers from the beginning, the middle and the end, without reading what lies between."""
        if not self._mapped:
            self._mapped = self._map()
        flat = self._mapped[name].flatten()
        starts = sorted({0, max(0, len(flat) // 2 - count // 2), max(0, len(flat) - count)})
        return torch.cat([flat[start : start + count] for start in starts])

    def read(self, name: str) -> Tensor:
        """A copy of the tensor in its stored dtype, independent of the file."""
        if not self._mapped:
            self._mapped = self._map()
        tensor = self._mapped[name].clone()
        self._handed_out += tensor.nbytes
        if self._handed_out > _UNMAP_BYTES:
            self.unmap()
        return tensor

    def unmap(self) -> None:
        """Gives the file's pages back; the next read maps it again."""
        self._mapped, self._handed_out = {}, 0

    def _map(self) -> dict[str, Tensor]:
        if not self.path.is_file():
            raise CheckpointError(
                f"{self.path} is missing",
                expected="a weight file",
                next_step="Download it again or correct its path.",
            )
        stored = _safetensors(self.path) if self.path.suffix == ".safetensors" else _pytorch(self.path)
        while len(wrapped := [key for key in _WRAPPERS if isinstance(stored.get(key), dict)]) == 1:
            stored = stored[wrapped[0]]
        odd = [key for key, value in stored.items() if not _is_plain(value)]
        if odd or not stored:
            what = f"an entry {odd[0]!r} that is not a plain tensor" if odd else "no tensor"
            raise CheckpointError(f"{self.path} holds {what}", expected="a file of named tensors")
        return stored


def _is_plain(value: object) -> bool:
    """A tensor, neither sparse nor quantized."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _pytorch(path: Path) -> dict[str, Any]:
    try:
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            stored = torch.load(path, map_location="cpu", weights_only=True)  # older than PyTorch 1.6
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as PyTorch weights ({_first_sentence(error)})",
            expected="a file saved by torch.save that holds tensors only",
            next_step="Download it again; a file that needs a full unpickle can run code and is refused.",
        ) from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} holds a {type(stored).__name__}", expected="a dict of named tensors")
    return stored


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # maps the file; tensors share its pages
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({_first_sentence(error)})", next_step="Download it again."
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0] or type(error).__name__


class TensorFolder:
    """The weights of a Hugging Face folder, sharded or not, `.bin` or safetensors."""

    def __init__(self, folder: Path) -> None:
        """Raises `CheckpointError` when there are no weights, or an index names a file that is missing."""
        self._file_of = {name: file for file in _files(folder) for name in file}
        self._last_read: TensorFile | None = None
        _check_index(folder, self._file_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file_of[name].shape(name)

    def glimpse(self, name: str, count: int) -> Tensor:
        return self._file_of[name].glimpse(name, count)

    def read(self, name: str) -> Tensor:
        file = self._file_of[name]
        if self._last_read and self._last_read is not file:
            self._last_read.unmap()
        self._last_read = file
        return file.read(name)


def _files(folder: Path) -> list[TensorFile]:
    for index in (_SAFE_INDEX, _BIN_INDEX):
        if (folder / index).is_file():
            return [TensorFile(folder / name) for name in sorted(set(_weight_map(folder / index).values()))]
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return [TensorFile(folder / single)]
    raise CheckpointError(
        f"{folder} holds no weights",
        expected=f"{_BIN_INDEX}, {_SAFE_INDEX}, pytorch_model.bin or model.safetensors",
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is not an index of shards ({error!r})", expected="a weight_map"
        ) from error
    for file in names.values():
        if Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{index} names {file!r}", expected="files of its own folder only")
    return names


def _check_index(folder: Path, file_of: dict[str, TensorFile]) -> None:
    """What an index promises must be in the shard it names."""
    for index in (_SAFE_INDEX, _BIN_INDEX):
        if (folder / index).is_file():
            promised = _weight_map(folder / index)
            absent = [name for name in promised if name not in file_of]
            if absent:
                raise CheckpointError(
                    f"{folder / promised[absent[0]]} lacks {absent[0]!r}, which {index} puts there"
                    + (f" ({len(absent)} such tensors)" if len(absent) > 1 else ""),
                    next_step="Download the shard again.",
                )
            return


def read_json(file: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file. Raises `CheckpointError` saying `what` was expected."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})", expected=what) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds a {type(data).__name__}", expected=what)
    return data
