"""The devices that engines are built for, as data.

Says what each one is, which library and versions build for it, and what precisions it has. Knows nothing of
how an engine is built or run; whether this machine is one of them is found out elsewhere.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from llamavid.contract import Lowering
from llamavid.errors import DeviceError, UsageError

THIS = "this"

Version = tuple[int, ...]
Capability = tuple[int, int]


class Library(str, enum.Enum):
    """What builds and runs engines."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"

    @property
    def product(self) -> str:
        return {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[self.value]


@dataclass(frozen=True)
class Target:
    """One kind of device.

    Args:
        capability: its compute capability; engines need that very one unless built to be compatible.
        first, last: versions of the library that build for it, as far as the last one's numbers go.
        memory_gib: of the smallest device of that name; on a Jetson the CPU's too.
        machine: its processor, as `platform.machine()` says.
    """

    name: str
    device: str
    capability: Capability
    library: Library
    first: Version
    last: Version
    memory_gib: int
    machine: str

    @property
    def precisions(self) -> tuple[str, ...]:
        """TensorRT-RTX has no float32 product for compute capability 7.5 (tried: docs/what-builds.md)."""
        lacks_float32 = self.library is Library.TENSORRT_RTX and self.capability < (8, 0)
        return tuple(
            name for name in precisions_of(self.capability) if not (name == "fp32" and lacks_float32)
        )

    def takes(self, version: Version) -> bool:
        """Whether that version of the library builds for it: (10, 16) includes 10.16.2."""
        return self.first <= version and version[: len(self.last)] <= self.last


_TENSORRT, _RTX = Library.TENSORRT, Library.TENSORRT_RTX
_NEWEST = (11,)  # of which releases up to 11.4 were looked at

TARGETS = {
    target.name: target
    for target in (
        Target("a100", "A100", (8, 0), _TENSORRT, (10, 3), _NEWEST, 40, "x86_64"),
        Target("h200", "H100 or H200", (9, 0), _TENSORRT, (10, 3), _NEWEST, 80, "x86_64"),
        Target("orin-jp6", "Jetson Orin, JetPack 6", (8, 7), _TENSORRT, (10, 3), (10, 7), 8, "aarch64"),
        Target("orin-jp7", "Jetson Orin, JetPack 7.2", (8, 7), _TENSORRT, (10, 16), _NEWEST, 8, "aarch64"),
        Target("thor", "Jetson Thor, JetPack 7.2", (11, 0), _TENSORRT, (10, 16), _NEWEST, 128, "aarch64"),
        Target("rtx-sm75", "GeForce RTX 20", (7, 5), _RTX, (1, 7), (1,), 8, "x86_64"),
        Target("rtx-sm80", "A100, by TensorRT-RTX", (8, 0), _RTX, (1, 7), (1,), 40, "x86_64"),
        Target("rtx-sm86", "GeForce RTX 30, A10, A40", (8, 6), _RTX, (1, 7), (1,), 8, "x86_64"),
        Target("rtx-sm89", "GeForce RTX 40, L4, L40", (8, 9), _RTX, (1, 7), (1,), 8, "x86_64"),
        Target("rtx-sm120", "GeForce RTX 50, RTX PRO Blackwell", (12, 0), _RTX, (1, 7), (1,), 8, "x86_64"),
    )
}

# Precision -> the first compute capability that multiplies in it (facts/deployment section 2).
_SINCE: dict[str, Capability] = {
    "fp32": (5, 0),
    "fp16": (5, 3),
    "int8": (7, 5),
    "bf16": (8, 0),
    "int4": (8, 0),
    "fp8": (8, 9),
}


def precisions_of(capability: Capability) -> tuple[str, ...]:
    """The names of what a device of that compute capability has."""
    return tuple(name for name, since in _SINCE.items() if capability >= since)


def lowering_for(library: Library, version: Version) -> Lowering:
    """The language model's: TensorRT knows TensorScatter and Attention from 10.15 on."""
    known = library is Library.TENSORRT_RTX or version >= (10, 15)
    return Lowering.STATIC if known else Lowering.PRIMITIVE


def find_target(name: str) -> Target:
    """Raises `UsageError` for a name that is none of ours; `this` is resolved where devices are known."""
    if name not in TARGETS:
        raise UsageError(f"target {name!r}", expected=", ".join([*TARGETS, THIS]))
    return TARGETS[name]


def target_of(capability: Capability, library: Library, version: Version, machine: str) -> Target:
    """The target that a device is. Raises `DeviceError` where it is none."""
    for target in TARGETS.values():
        same = (target.capability, target.library, target.machine) == (capability, library, machine)
        if same and target.takes(version):
            return target
    raise DeviceError(
        f"{library.product} {dotted(version)}, compute capability {dotted(capability)} ({machine})",
        expected=f"one of {', '.join(TARGETS)}",
        next_step="Name the nearest with --target, or add it to llamavid/targets.py.",
    )


def require_precision(target: Target, graph: str, precision: str) -> None:
    """Raises `DeviceError` where the target does not have it, with what it has."""
    if precision not in target.precisions:
        raise DeviceError(
            f"{graph} is in {precision}, which {target.name} does not have",
            expected=", ".join(target.precisions),
            next_step="Export the bundle again with one of these.",
        )


def dotted(numbers: Version) -> str:
    """(8, 0) as 8.0: of a compute capability or a version."""
    return ".".join(map(str, numbers))


def version_of(text: str) -> Version:
    """11.4.0.12 -> (11, 4, 0, 12), 10.3.0rc1 -> (10, 3, 0); () for what is no version."""
    match = re.match(r"[0-9]{1,6}(\.[0-9]{1,6}){0,4}(?![0-9])", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
