"""The data file of one graph or of several: each tensor once, written as soon as it is known.

    with WeightFile(folder / "llm.onnx.data") as weights:
        ...  # graph after graph; what the first stored, the second refers to

A tensor is known by its name and element type; the name is the checkpoint's, so it has one shape.
Knows ONNX's way of naming bytes outside a graph; knows nothing of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

_ALIGNMENT = 4096  # bytes; lets a runtime map weights instead of reading them


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    name: str
    onnx_type: int
    shape: tuple[int, ...]
    offset: int  # bytes
    length: int  # bytes


class WeightFile:
    """Must be closed: use it in a `with` block."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._data = file.open("w+b")
        self._stored: dict[tuple[str, int], Stored] = {}
        self.lengthened: dict[str, int] = {}  # rows of zeros at a matrix's end, to make its blocks whole

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._data.close()

    def find(self, name: str, onnx_type: int) -> Stored | None:
        """The tensor of that name and type, if it was stored."""
        return self._stored.get((name, onnx_type))

    def store(self, name: str, array: npt.NDArray[Any], onnx_type: int, shape: tuple[int, ...]) -> Stored:
        """Writes `array`, which holds a tensor of `shape`, unless it was stored before."""
        earlier = self.find(name, onnx_type)
        if earlier is not None:
            assert earlier.shape == tuple(shape), f"{name} is {earlier.shape} and {shape}"
            return earlier
        offset = -(-self._data.seek(0, 2) // _ALIGNMENT) * _ALIGNMENT
        self._data.seek(offset)
        self._data.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        stored = Stored(name, onnx_type, tuple(shape), offset, array.nbytes)
        self._stored[name, onnx_type] = stored
        return stored

    def read(self, stored: Stored, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The tensor's values, of which `dtype` is the type."""
        self._data.seek(stored.offset)
        return np.frombuffer(self._data.read(stored.length), dtype).reshape(stored.shape)

    def reference(self, stored: Stored) -> TensorProto:
        """What a graph says of it."""
        tensor = TensorProto(
            name=stored.name,
            data_type=stored.onnx_type,
            dims=stored.shape,
            data_location=TensorProto.EXTERNAL,
        )
        where = {"location": self.file.name, "offset": stored.offset, "length": stored.length}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def flush(self) -> None:
        """What was stored can be read by others."""
        self._data.flush()
