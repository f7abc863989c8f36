"""A safetensors file written tensor by tensor: the header first, then each tensor at its place.

Takes names, dtypes and shapes at once and values one at a time, in any order; so a file of 26 GB needs
the memory of its largest tensor. Knows nothing about what the tensors mean.
The format: a little-endian uint64, that many bytes of JSON, then the values (safetensors, its README).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
}


class Planned(NamedTuple):
    """A tensor that is to come."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorWriter:
    """One file. `with TensorWriter(path, plan) as file: file.write(name, tensor)`, each name once."""

    def __init__(self, path: Path, plan: Mapping[str, Planned]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, int] = {}
        end = 0
        for name, planned in plan.items():
            self._places[name], end = end, end + planned.nbytes
            header[name] = {
                "dtype": _DTYPES[planned.dtype],
                "shape": planned.shape,
                "data_offsets": (self._places[name], end),
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
        self._start = 8 + len(text)
        self._plan, self._missing = plan, set(plan)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._file.truncate(self._start + end)

    def write(self, name: str, tensor: Tensor) -> None:
        """The value of `name`, of exactly the planned dtype and shape."""
        planned = self._plan[name]
        assert (tensor.dtype, tuple(tensor.shape)) == planned, (name, tensor.dtype, tensor.shape, planned)
        self._missing.remove(name)
        self._file.seek(self._start + self._places[name])
        self._file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        assert kind is not None or not self._missing, sorted(self._missing)
