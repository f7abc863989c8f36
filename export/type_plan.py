"""Which residual sums may be float16, and which products may not: one graph's choice, layer by layer.

Note [Range]
    float16 ends at 65504, and a ViT's residual sums reach it: what comes after is inf and then NaN. Without
    data every residual sum is float32, which is always right. With a scan of real frames
    (`llamavid.export.activations`) a sum whose largest value keeps a factor of 4 to the end of float16 is
    float16, and moves half the bytes; and a product whose operand or result comes nearer than that is
    float32 altogether, since a float32 sum does not undo an inf that went into it. bfloat16 has float32's
    range and 8 bits: its sums stay float32 for their precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llamavid.contract import DType

FLOAT16_END = float(np.finfo(np.float16).max)  # 65504
SAFE_FRACTION = 0.25  # frames that nobody scanned may be larger; a factor of 4


@dataclass(frozen=True)
class TypePlan:
    """Of one graph; names are those of modules.

    Args:
        narrow_sums: residual sums in the type of products. All others are float32.
        wide_products: linear layers and attentions in float32. All others are in the type of products.
        features: of the encoder's features at the graph's boundary; None: as the rest of it.
    """

    narrow_sums: frozenset[str] = frozenset()
    wide_products: frozenset[str] = frozenset()
    features: DType | None = None


CAREFUL = TypePlan()  # right without data, but where a product itself leaves float16
