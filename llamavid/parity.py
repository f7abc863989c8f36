"""How far an array is from its reference, and how far a graph in each precision may be.

Export judges its graphs by these, the device its engines: one table, so that they mean the same by it.
Knows nothing of what made the arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType, GraphContract

Array = npt.NDArray[Any]


class Tolerance(NamedTuple):
    """Of the relative norm of a difference; None: measured, not judged. Its reason goes into the table."""

    norm: float | None
    reason: str


# Both sides round to the same levels. A sum in another order moves a value at a boundary by one, and what
# comes after it too: 1e-7 in one layer, 7e-3 after the four blocks of the tiny encoder, and at most about as
# far as rounding itself goes, which is measured beside it.
_SAME_LEVELS = "weights and activations on the same levels; sums in another order move some by one"

# Of a graph, run by ONNX Runtime on the CPU.
TOLERANCES = {
    "fp32": Tolerance(2e-5, "float32, another order of summation"),
    "fp16": Tolerance(2e-2, "float16 weights and edges; a CPU may multiply in float32"),
    "bf16": Tolerance(1e-1, "bfloat16 keeps 8 bits; computed by its emulation, or in float32"),
    "int8 frames": Tolerance(2e-1, _SAME_LEVELS),
    "fp8 frames": Tolerance(2e-1, _SAME_LEVELS),
    "int4 frames": Tolerance(1e-1, "the same int4 weights, activations rounded to int8 by the kernel"),
    "cost": Tolerance(
        9e-1, "what the format itself costs; `llamavid eval` judges it, here only a ruined model fails"
    ),
    "int4 weights": Tolerance(1e-4, "the same int4 weights, float32 otherwise"),
    "int4 in float16": Tolerance(
        2e-2, "the same int4 weights, float16 otherwise; a CPU may multiply in float32"
    ),
    "int8 run": Tolerance(2e-1, _SAME_LEVELS),
    "fp8 run": Tolerance(2e-1, _SAME_LEVELS),
    "int4 run": Tolerance(1e-1, "the same int4 weights, activations rounded to int8 by the kernel"),
}

# Of a language model whose cache has another type than its products, where that allows more.
CACHE_TOLERANCES = {
    DType.FLOAT16: Tolerance(2e-2, "keys and values in float16"),
    DType.INT8: Tolerance(2e-1, "keys and values in eight bits, one range a layer for each"),
}

# Of an engine.
ENGINE_TOLERANCES = {
    "fp32": Tolerance(2e-5, "float32 without TF32, another order of summation"),
    "fp16": Tolerance(2e-2, "float16 products; sums that need it in float32"),
    "bf16": Tolerance(1e-1, "bfloat16 products keep 8 bits; sums that need it in float32"),
    "int8": Tolerance(2e-1, _SAME_LEVELS),
    "fp8": Tolerance(2e-1, _SAME_LEVELS),
    "int4": Tolerance(2e-2, "the same int4 weights, float16 otherwise"),
}

QUANTIZED = ("int8", "fp8", "int4")  # compared with PyTorch that is rounded alike


def with_cache(tolerance: Tolerance, contract: GraphContract) -> Tolerance:
    """What a language graph may differ by that is judged by `tolerance` but for its cache."""
    cache = next(spec.dtype for spec in contract.inputs if spec.name.startswith("past."))
    allowed = CACHE_TOLERANCES.get(cache)
    if allowed is None or tolerance.norm is None or cache is contract.spec("inputs_embeds").dtype:
        return tolerance
    return max(tolerance, allowed, key=lambda one: one.norm or 0.0)


def relative_errors(reference: Array, found: Array) -> tuple[float, float]:
    """Largest difference over the largest value, and norm of the difference over the norm, in float64."""
    a, b = reference.astype(np.float64), found.astype(np.float64)
    assert a.shape == b.shape, f"{b.shape} against {a.shape}"
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # inf and NaN are what is looked for
        return float(np.abs(a - b).max() / np.abs(a).max()), float(np.linalg.norm(a - b) / np.linalg.norm(a))


def worst_row_errors(reference: Array, found: Array) -> tuple[float, float]:
    """The same of the worst row [n, ...]: over all rows, one that is wrong among 64 would hardly show.

    A row's difference is divided by what rows are like: root mean square of their norms.
    """
    a, b = (array.astype(np.float64).reshape(len(array), -1) for array in (reference, found))
    assert a.shape == b.shape, f"{b.shape} against {a.shape}"
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        usual = np.sqrt(np.mean(np.sum(a * a, axis=1)))
        norms = np.sqrt(np.sum((a - b) ** 2, axis=1)) / usual
        return float(np.abs(a - b).max() / np.abs(a).max()), float(norms.max())  # NaN, if any is
