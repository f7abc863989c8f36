"""How far from the truth a result may be, and how far it is.

The truth is the plain network in float32 on the same inputs, with float16's weights. A bound is told with
every figure; what is over it, or holds a NaN, voids the figure: a wrong result is often a fast one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Relative norm of a module's worst frame. Of EVA-g at full width with random weights, 39 blocks on a CPU,
# bfloat16 has 0.014 and float8 products 0.10; float16 has 3 bits more than bfloat16, an eighth of its error.
BOUNDS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2, "float8": 1.5e-1}
# A frame's tokens, from pixels on. Noise on the features is 2.7 times as large on the context token of random
# networks (12 frames on a CPU): the mean of patches that have nothing in common is small beside them.
WHOLE = 3.0  # times a module's bound


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative norm of the worst of the first dimension's entries; NaN where anything is not finite."""
    if found.shape != expected.shape:
        raise ValueError(f"a result of {tuple(found.shape)} beside a truth of {tuple(expected.shape)}")
    found, expected = found.flatten(1).float(), expected.flatten(1).float()
    if not found.isfinite().all():
        return math.nan
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def why_void(errors: dict[str, float], bound: float) -> str:
    """Empty where every error is within the bound; otherwise which is not."""
    for what, error in errors.items():
        if math.isnan(error):
            return f"{what}: NaN or infinite"
        if error > bound:
            return f"{what}: error {error:.2g} over {bound:g}"
    return ""


def exact_float32() -> None:
    """No TF32 anywhere: the truth is computed in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
