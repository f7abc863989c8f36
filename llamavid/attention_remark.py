"""What an exported graph says about its attentions: which values each is made of, on its last node.

    node.metadata_props.add(key, value) for `key, value = remark(Attention("q", "k", "v", 16, 0.1))`
    attention_of(value)

The graph computes an attention in standard operators, which everything reads. Who has a kernel for the
whole puts that in the place of the marked node; to everyone else a remark says nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

KEY = "llamavid.attention"


@dataclass(frozen=True)
class Attention:
    """softmax(scale q k^T) v, by head.

    Args:
        q: name of a value [B, R, heads * d]; k and v [B, K, heads * d], float32, of the same B.
    """

    q: str
    k: str
    v: str
    heads: int
    scale: float


def remark(attention: Attention) -> tuple[str, str]:
    """Key and text."""
    return KEY, json.dumps(asdict(attention))


def attention_of(text: str) -> Attention:
    """What `remark` wrote. Raises `ValueError` or `TypeError` where it is something else."""
    return Attention(**json.loads(text))
