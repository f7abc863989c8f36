"""What a machine can do at most: matrix products a second by type, and bytes of memory a second.

Published ones are data here, each with its origin; those of this machine are measured by
`llamavid.runtime.profile.measured_ceilings`. A floor is the least time that work can take under a ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llamavid.work import WEIGHT_BYTES, Work

CPU_TYPES = {"fp16": "fp16", "bf16": "fp32", "int4": "int8"}  # what a CPU multiplies a graph's weights in
GPU_TYPES = {"bf16": "fp16", "int4": "fp16"}


@dataclass(frozen=True)
class Ceilings:
    """Of one machine.

    Args:
        products: multiplications and additions a second, by type: fp32, fp16, int8, fp8. Dense; a float16
            product's rate is bfloat16's too.
        bandwidth: bytes of memory a second, read and written together.
        origin: where the numbers are from.
    """

    name: str
    products: dict[str, float]
    bandwidth: float
    origin: str
    is_cpu: bool = False


class Floor(NamedTuple):
    """The least milliseconds that work can take, and what holds it there: `products` or `memory`."""

    milliseconds: float
    bound: str


def floor(
    work: Work,
    precision: str,
    ceilings: Ceilings,
    *,
    frames: int = 1,
    element_bytes: int | None = None,
    kept_bytes: int | None = None,
) -> Floor | None:
    """Of `work`, `frames` of it in one run, for each; None where the machine does not multiply that type.

    Weights are read once a run. Products and memory are taken to overlap fully. `element_bytes` and
    `kept_bytes` as `bytes_moved` takes them.
    """
    weighted, mixed = multiplied_in(precision, is_cpu=ceilings.is_cpu)
    if not {weighted, mixed} <= ceilings.products.keys():
        return None
    products = 2 * (work.weighted / ceilings.products[weighted] + work.mixed / ceilings.products[mixed])
    moved = bytes_moved(work, precision, frames=frames, element_bytes=element_bytes, kept_bytes=kept_bytes)
    memory = moved / ceilings.bandwidth
    return Floor(1000 * max(products, memory), "products" if products >= memory else "memory")


def bytes_moved(
    work: Work,
    precision: str,
    *,
    frames: int = 1,
    element_bytes: int | None = None,
    kept_bytes: int | None = None,
) -> float:
    """For each frame or run: its share of the weights, and what goes in and out.

    Args:
        element_bytes: of a number at the graph's boundary; None: four around float32, otherwise two.
        kept_bytes: of a number among keys and values; None: as the rest of the boundary.
    """
    element = element_bytes or (4 if precision == "fp32" else 2)
    carried = (work.carried - work.kept) * element + work.kept * (kept_bytes or element)
    return work.weights * WEIGHT_BYTES[precision] / frames + carried


def multiplied_in(precision: str, *, is_cpu: bool) -> tuple[str, str]:
    """Types of products with weights, and of those between activations, which no format rounds to int8."""
    if is_cpu:
        return CPU_TYPES.get(precision, precision), "fp16" if precision == "fp16" else "fp32"
    weighted = GPU_TYPES.get(precision, precision)
    return weighted, "fp32" if precision == "fp32" else "fp16"


_T, _G = 1e12, 1e9

# Dense rates; a sparse one that alone is published was halved. float32 is that of the ordinary units, since
# engines are built without TF32 unless it is asked for.
PUBLISHED = (
    Ceilings(
        "A100",
        {"fp32": 19.5 * _T, "fp16": 312 * _T, "int8": 624 * _T},
        1555 * _G,
        "NVIDIA A100 datasheet, SXM, 40 GB",
    ),
    Ceilings(
        "H200",
        {"fp32": 67 * _T, "fp16": 989.5 * _T, "int8": 1979 * _T, "fp8": 1979 * _T},
        4800 * _G,
        "NVIDIA H200 datasheet, SXM; sparse rates halved",
    ),
    Ceilings(
        "AGX Orin",
        {"fp32": 5.3 * _T, "fp16": 42.5 * _T, "int8": 85 * _T},
        204.8 * _G,
        "Jetson AGX Orin technical brief, 64 GB, GPU: 170 sparse int8 TOPS halved, float16 half of it",
    ),
    Ceilings(
        "Orin Nano",
        {"fp32": 2.1 * _T, "fp16": 16.7 * _T, "int8": 33.5 * _T},
        102 * _G,
        "Jetson Orin Nano Super data sheet, 8 GB: 67 sparse int8 TOPS halved, float16 half of it; "
        "float32 by 1,024 cores at 1.02 GHz",
    ),
    Ceilings(
        "Thor",
        {"fp32": 8.06 * _T, "fp16": 258.5 * _T, "int8": 517 * _T, "fp8": 517 * _T},
        273 * _G,
        "Jetson T5000 data sheet: 2,070 sparse FP4 TFLOPS; each step wider, and dense, halves it; "
        "float32 by 2,560 cores at 1.575 GHz",
    ),
)
