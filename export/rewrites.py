"""The exact rewrites: other ways to write the graphs that compute the same function with less work.

Takes names, gives the set that a graph is written with; the writers ask `Rewrite.X in layers.rewrites`. The
plain form, with none of them, is the truth that each is tested against. Facts section 11 is where they
come from; `python -m benchmarks.rewrites` measures each.

Note [Rounded products]
    A product whose operands are rounded has a step for what enters it, under the name that calibration knows
    it by. A rewrite that multiplies matrices ahead of time would round another matrix than the one that was
    calibrated, so int8, fp8 and int4 graphs do without `folded-keys`, `folded-scale` and `absorbed-image`.
    Products of one input are one where their steps are equal, as calibration makes them: every column is
    rounded alone, so the levels are the same.

Note [One product in int8]
    By itself ONNX Runtime 1.31 multiplies in int8 only where the DequantizeLinear of an input has one reader;
    of three it dequantizes the weights, in every run. Where the products are float32 around int8 its kernels
    are put in by `llamavid.runtime.kernels`, and that no longer matters. What does is the Split of a joined
    product, a copy of all its columns: 76 MB for the image rows of 8 frames. So `one-product` and
    `image-once` are not used there: without them a context graph is 1.2 times as fast.
"""

from __future__ import annotations

import enum

from llamavid.contract import DType
from llamavid.errors import UsageError
from llamavid.export.precision import Precision
from llamavid.formats.eight_bits import EightBits


class Rewrite(str, enum.Enum):
    """One of them, by the name that `export --rewrites` takes."""

    AVERAGED_WEIGHTS = "averaged-weights"  # context attention: softmax rows averaged, then one row times X
    FOLDED_KEYS = "folded-keys"  # context attention: the key projector is multiplied into the query's
    QUESTION_ONCE = "question-once"  # what no frame has touched yet is computed once a question
    LAST_WORDS = "last-words"  # the Q-Former's last text rows, which nothing reads, are not computed
    ONE_PRODUCT = "one-product"  # query, key and value of one input are one product
    FOLDED_SCALE = "folded-scale"  # 1 / sqrt(head size) is in the query's weight
    LATE_BIAS = "late-bias"  # keys have no bias, and values get theirs after the attention
    IMAGE_ONCE = "image-once"  # keys and values of all cross-attentions are one product of the image rows
    ABSORBED_IMAGE = "absorbed-image"  # Q-Former: the image rows' projections move to the 32 queries
    LAST_ROW = "last-row"  # language model: behind the last attention, only the row that is read


Rewrites = frozenset[Rewrite]

NONE: Rewrites = frozenset()
PAYING: Rewrites = frozenset(Rewrite)  # `image-once` where `absorbed-image`, which is faster, is not
_CALIBRATED: Rewrites = PAYING - {Rewrite.FOLDED_KEYS, Rewrite.FOLDED_SCALE, Rewrite.ABSORBED_IMAGE}
_INT8: Rewrites = _CALIBRATED - {Rewrite.ONE_PRODUCT, Rewrite.IMAGE_ONCE}  # Note [One product in int8]

_SETS = {"all": PAYING, "none": NONE}


def applicable(rewrites: Rewrites, precision: Precision) -> Rewrites:
    """Those that a graph of that precision is written with: Note [Rounded products]."""
    if precision.eight_bits is EightBits.INT8 and precision.compute is DType.FLOAT32:
        return rewrites & _INT8
    return rewrites & _CALIBRATED if precision.rounds else rewrites


def parsed_rewrites(text: str) -> Rewrites:
    """`all`, `none`, or names with commas between.

    Raises:
        UsageError: there is no such rewrite.
    """
    if text in _SETS:
        return _SETS[text]
    names, known = text.split(","), {rewrite.value: rewrite for rewrite in Rewrite}
    for name in names:
        if name not in known:
            raise UsageError(f"rewrite {name!r}", expected=f"all, none, or some of {', '.join(known)}")
    return frozenset(known[name] for name in names)


def written_rewrites(rewrites: Rewrites) -> str:
    """What `parsed_rewrites` reads as them, but that it names each."""
    return ",".join(sorted(rewrite.value for rewrite in rewrites)) or "none"
