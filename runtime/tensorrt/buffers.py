"""Memory on the GPU and, pinned, on the host: owned, and freed once.

By Note [Given back] in `llamavid.runtime.tensorrt.cuda`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.errors import DeviceError
from llamavid.runtime.tensorrt.cuda import Cuda, owned

ALIGNMENT = 256  # bytes, of what TensorRT takes as a tensor's address


class DeviceBuffer:
    """`size` bytes of the GPU's memory, which hold anything before they are written."""

    def __init__(self, cuda: Cuda, size: int, what: str) -> None:
        """Raises `DeviceError` with both numbers where there is not so much; `what` needs it."""
        self.size = max(size, 1)
        self.address: int = _allocated(cuda, self.size, what)
        self.close = owned(self, cuda, "cudaFree", self.address)


class PinnedBuffer:
    """Host memory that the GPU copies from and to while the host goes on. `bytes` is uint8 [size]."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = max(size, 1)
        self.address: int = cuda("cudaMallocHost", self.size)
        self.close = owned(self, cuda, "cudaFreeHost", self.address)
        memory = (ctypes.c_uint8 * self.size).from_address(self.address)
        self.bytes: npt.NDArray[np.uint8] = np.ctypeslib.as_array(memory)

    def view(self, dtype: npt.DTypeLike, shape: Sequence[int]) -> npt.NDArray[Any]:
        """The first bytes as an array. Not to be used after `close`."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self.bytes[:size].view(dtype).reshape(shape)


Buffer = DeviceBuffer | PinnedBuffer


def aligned(size: int) -> int:
    """Bytes to the next place where a tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _allocated(cuda: Cuda, size: int, what: str) -> int:
    code, address = cuda.api.cudaMalloc(size)
    if code == cuda.api.cudaError_t.cudaErrorMemoryAllocation:
        cuda.api.cudaGetLastError()  # it is dealt with here
        raise DeviceError(
            f"{what} needs {size / 2**20:,.1f} MiB of the GPU's memory",
            expected=f"at most {cuda.free_bytes() / 2**20:,.1f}, which are free",
            next_step="Free some, take a shorter video, or pass --on cpu.",
        )
    if code != cuda.api.cudaError_t.cudaSuccess:
        raise DeviceError(f"cudaMalloc failed: {cuda.words(code)}")
    return int(address)
