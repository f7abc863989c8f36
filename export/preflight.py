"""What a build needs of memory and disk, as numbers, before an hour of it ends for want of either.

Takes sizes of weights, gives bytes. The factors were measured with TensorRT-RTX 1.7.1 (docs/what-builds.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from llamavid.contract import DType, GraphContract
from llamavid.engines import Device
from llamavid.errors import DeviceError
from llamavid.targets import Target

GIB = 1 << 30

_BUILD_BASE = GIB // 2  # the library itself, and a graph of almost no weights
_BUILD_FACTOR = 3.3  # the file, what the builder makes of it, the plan: EVA-g took 6.7 GB for 2.0 of weights
_ENGINE_BASE = 16 << 20  # kernels for several shapes
_ENGINE_FACTOR = 1.1


@dataclass(frozen=True)
class Need:
    """In bytes.

    Args:
        build_memory: of the machine, for the largest graph: they are built one after the other.
        device_memory: of the target, for all weights and the longest cache.
        disk: for engines that are yet to be built.
    """

    build_memory: int
    device_memory: int
    disk: int


def need_of(weights: dict[str, int], to_build: set[str], cache_bytes: int) -> Need:
    """Of a set whose stages have so many bytes of weights."""
    largest = max((size for stage, size in weights.items() if stage in to_build), default=0)
    return Need(
        build_memory=_BUILD_BASE + int(largest * _BUILD_FACTOR) if to_build else 0,
        device_memory=int(sum(weights.values()) * _ENGINE_FACTOR) + cache_bytes,
        disk=sum(_ENGINE_BASE + int(weights[stage] * _ENGINE_FACTOR) for stage in to_build),
    )


def cache_bytes(contract: GraphContract, largest: dict[str, tuple[int, ...]]) -> int:
    """Of the key-value buffers at their longest; a language model's `past.*` inputs."""
    total = 0
    for spec in contract.inputs:
        if spec.name.startswith("past."):
            size = 4 if spec.dtype is DType.FLOAT32 else 2
            for dim in largest[spec.name]:
                size *= dim
            total += size
    return total


def require_memory(need: Need, available: int | None, *, device: Device | None) -> None:
    """Raises `DeviceError` where the build will not fit.

    Args:
        available: bytes; None where the system does not say.
        device: the GPU that the library builds on; None where it needs none.
    """
    if available is not None and need.build_memory > available:
        raise DeviceError(
            f"the build needs about {gib(need.build_memory)} of memory; {gib(available)} are available",
            next_step="Free some, build on a larger machine, or pass --ignore-memory to try all the same.",
        )
    if device is not None and need.build_memory and need.device_memory > device.memory_bytes:
        raise DeviceError(
            f"the engines need about {gib(need.device_memory)} of {device.name}'s memory; "
            f"{gib(device.memory_bytes)} are free",
            next_step="Free some, choose a smaller --cache, or pass --ignore-memory to try all the same.",
        )


def device_remark(need: Need, target: Target) -> str:
    """One sentence where the target's smallest device has too little memory for the set; else empty."""
    if need.device_memory <= target.memory_gib * GIB:
        return ""
    return (
        f"{target.device}s with {target.memory_gib} GiB cannot hold this set of about "
        f"{gib(need.device_memory)}: export in a smaller precision, or build with a smaller --cache."
    )


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
