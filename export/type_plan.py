"""Which residual sums may be float16, and which products may not: one graph's choice, layer by layer.

Note [Range]
    float16 ends at 65504, and a ViT's residual sums reach it: what comes after is inf and then NaN. Without
    data every residual sum is float32, which is always right. With a scan of real frames
    (`llamavid.export.scan`) a sum whose largest value keeps a factor of 4 to the end of float16 is
    float16, and moves half the bytes; and a product whose operand or result comes nearer than that is
    float32 altogether, since a float32 sum does not undo an inf that went into it. bfloat16 has float32's
    range and 8 bits: its sums stay float32 for their precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamavid.contract import DType
from llamavid.export.activations import FLOAT16_END, Activations, GraphActivations

SAFE_FRACTION = 0.25  # frames that nobody scanned may be larger; a factor of 4


@dataclass(frozen=True)
class TypePlan:
    """Of one graph; names are those of modules.

    Args:
        narrow_sums: residual sums in the type of products. All others are float32.
        wide_products: linear layers and attentions in float32. All others are in the type of products.
    """

    narrow_sums: frozenset[str] = frozenset()
    wide_products: frozenset[str] = frozenset()


CAREFUL = TypePlan()  # right without data, but where a product itself leaves float16


def plan_from(seen: GraphActivations, compute: DType) -> TypePlan:
    """Note [Range]: what this graph's largest activations allow and demand."""
    if compute is not DType.FLOAT16:
        return CAREFUL
    limit = SAFE_FRACTION * FLOAT16_END
    products = (seen.inputs, seen.outputs, seen.operands, seen.scores)
    return TypePlan(
        frozenset(name for name, largest in seen.sums.items() if largest <= limit),
        frozenset(name for kind in products for name, largest in kind.items() if largest > limit),
    )


def features_type(seen: Activations, last_sum: str, compute: DType) -> DType | None:
    """float32 where float16 might not hold the encoder's features, its last sum; else None."""
    risky = seen.graphs["vision"].sums[last_sum] > SAFE_FRACTION * FLOAT16_END
    return DType.FLOAT32 if risky and compute is DType.FLOAT16 else None
