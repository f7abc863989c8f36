"""The GPU of this machine and what is there to run engines on it, or one line about what is missing."""

from __future__ import annotations

import re
from pathlib import Path

from llamavid.engines import Device
from llamavid.errors import DeviceError
from llamavid.runtime.tensorrt.cuda import Cuda
from llamavid.runtime.tensorrt.library import TensorRt
from llamavid.targets import Capability, Library, dotted

_DRIVER = Path("/proc/driver/nvidia/version")
_FIRST = 0  # CUDA_VISIBLE_DEVICES chooses which GPU that is


def this_device(library: Library) -> Device:
    """The first GPU, with `library`.

    Raises:
        DeviceError: there is no driver, no GPU, no cuda-python or no such library, or the driver is too old.
    """
    cuda = Cuda()
    require_gpu(cuda)
    version = TensorRt(library).version
    return Device(
        _name(cuda),
        capability(cuda),
        driver_version(cuda),
        library,
        version,
        cuda.free_bytes(),
    )


def found_gpu() -> str:
    """The GPU in words, whatever library there is. Raises `DeviceError` where none can be used."""
    cuda = Cuda()
    require_gpu(cuda)
    memory = cuda("cudaMemGetInfo")
    return (
        f"{_name(cuda)}, compute capability {dotted(capability(cuda))}, driver {driver_version(cuda)}; "
        f"{memory[0] / 2**30:.1f} of {memory[1] / 2**30:.1f} GiB free"
    )


def require_gpu(cuda: Cuda) -> None:
    """Raises `DeviceError` where none can be used, with the reason."""
    code, count = cuda.api.cudaGetDeviceCount()
    errors = cuda.api.cudaError_t
    _, drives = cuda.api.cudaDriverGetVersion()  # 0 where there is no driver
    if code == errors.cudaErrorInsufficientDriver and drives:
        _, needed = cuda.api.cudaRuntimeGetVersion()
        raise DeviceError(
            f"the NVIDIA driver knows CUDA up to {_cuda_version(drives)}",
            expected=f"{_cuda_version(needed)}, which cuda-python was made for",
            next_step="Upgrade the driver, or install an older cuda-python.",
        )
    if not drives:
        raise DeviceError("this machine has no NVIDIA driver", next_step="Install it, or pass --on cpu.")
    if code == errors.cudaErrorNoDevice or (code == errors.cudaSuccess and count == 0):
        raise DeviceError(
            "the NVIDIA driver sees no GPU", next_step="Look at CUDA_VISIBLE_DEVICES, or pass --on cpu."
        )
    if code != errors.cudaSuccess:
        raise DeviceError(
            f"cudaGetDeviceCount failed: {cuda.words(code)}", next_step="Look at the GPU with nvidia-smi."
        )


def capability(cuda: Cuda) -> Capability:
    kinds = cuda.api.cudaDeviceAttr
    major = cuda("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, _FIRST)
    minor = cuda("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, _FIRST)
    return int(major), int(minor)


def _name(cuda: Cuda) -> str:
    name = cuda("cudaGetDeviceProperties", _FIRST).name
    return name.decode().rstrip("\0") if isinstance(name, bytes) else str(name)


def driver_version(cuda: Cuda) -> str:
    """580.95.05; where the system does not say, the CUDA that it knows."""
    words = _DRIVER.read_text() if _DRIVER.exists() else ""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", words)
    return found[0] if found else f"CUDA {_cuda_version(cuda('cudaDriverGetVersion'))}"


def _cuda_version(number: int) -> str:
    """13020 as 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"
