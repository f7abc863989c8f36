"""What an exported graph says of its attentions and rounded products: what each is made of, on its last node.

    node.metadata_props.add(key=KEY, value=written_remark(Attention("q", "k", "v", 16, 0.1)))
    remark_of(value)

The graph computes them in standard operators, which everything reads. Who has a kernel for the whole puts
that in the place of the marked node; to everyone else a remark says nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

KEY = "llamavid.kernel"


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


@dataclass(frozen=True)
class Int8Product:
    """round(x / step) levels, times step and scales, and a bias.

    Args:
        x: name of a value [..., K], float32; step: of a number, float32.
        levels: of a weight [K, N], int8; scales: of its columns' [N], float32.
        bias: of [N], float32; None: there is none.
    """

    x: str
    step: str
    levels: str
    scales: str
    bias: str | None = None


@dataclass(frozen=True)
class Int4Product:
    """x times levels, each worth its block's scale.

    Args:
        x: name of a value [..., K], float32.
        levels: of a weight [K, N], int4; scales: of its blocks' [K / block, N], float32.
    """

    x: str
    levels: str
    scales: str
    block: int


Remark = Attention | Int8Product | Int4Product
_KINDS: dict[str, type[Attention] | type[Int8Product] | type[Int4Product]] = {
    "attention": Attention,
    "int8": Int8Product,
    "int4": Int4Product,
}


def written_remark(remark: Remark) -> str:
    kind = next(name for name, of in _KINDS.items() if isinstance(remark, of))
    return json.dumps({kind: asdict(remark)})


def remark_of(text: str) -> Remark:
    """What `written_remark` wrote. Raises `ValueError` or `TypeError` where it is something else."""
    found = json.loads(text)
    if not isinstance(found, dict) or len(found) != 1 or not found.keys() <= _KINDS.keys():
        raise ValueError(f"{text[:80]!r} is no remark about a kernel")
    ((kind, values),) = found.items()
    return _KINDS[kind](**values)
