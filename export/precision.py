"""Precision lives in the graph: which type each weight and each operation has.

A `Precision` is data: the type of matrix products, the type of what loses most in it (normalizations,
softmax, residual sums), and the format of weights. Graphs are strongly typed: no builder flag exists that
would change them, and ONNX Runtime computes the numbers that TensorRT will.

    name  products  weights           activations at a product
    fp32  float32   float32           float32
    fp16  float16   float16           float16
    bf16  bfloat16  bfloat16          bfloat16
    int8  float32   int8 a column     int8 a tensor      scales.json
    fp8   float16   e4m3 a column     e4m3 a tensor      scales.json
    int4  float16   int4 a block      float16            the language model: float32

Note [Types around int8]
    TensorRT-RTX builds int8 Q/DQ with float32, float16 and bfloat16 scales alike (SM75 to SM121). ONNX
    Runtime's CPU multiplies int8 by int8 in float32 graphs only (MatMulIntegerToFloat); with float16
    scales it unpacks and multiplies floats. So int8 is float32 around the products unless float16 is asked
    for, which a GPU prefers: attention and GELU then move half the bytes. fp8 is float16: ONNX Runtime 1.31
    fuses float32 e4m3 Q/DQ into a node that it then refuses. A scale has the type of what it scales: a cast
    between DequantizeLinear and MatMul would keep them from fusing.

Note [Types of the cache]
    An hour of video is 7,200 tokens, whose keys and values are 7.5 GB of float32 in a 7B model. ONNX
    Runtime's GroupQueryAttention computes in float16 over a cache in float16, and in float32 over one in
    int8, with one scale for a layer's keys and one for its values. Float32 queries over a float16 cache it
    takes too, and then 1.31 forgets what an earlier call wrote: they are cast. TensorRT's lowerings keep the
    type of products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamavid.contract import DType
from llamavid.formats.eight_bits import EightBits


@dataclass(frozen=True)
class Precision:
    """Types of one graph.

    Args:
        compute: of matrix products, their weights and the graph's boundary.
        sensitive: of normalizations, softmax and residual sums.
        int4_block: rows of K that share one scale; None keeps weights in `compute`.
        eight_bits: format of the products' two sides; None leaves them in `compute`.
    """

    name: str
    compute: DType
    sensitive: DType = DType.FLOAT32
    int4_block: int | None = None
    eight_bits: EightBits | None = None
    stored: DType | None = None  # of weights, where that is another than they multiply in
    scales: DType | None = None  # that eight-bit scales are exact in, where that is another than `compute`
    cache: DType | None = None  # of keys and values, where that is another: Note [Types of the cache]

    @property
    def rounds(self) -> bool:
        """Whether products have fewer bits than `compute`."""
        return self.eight_bits is not None or self.int4_block is not None

    @property
    def boundary(self) -> DType:
        """Of a frame graph's inputs and outputs: bfloat16 stays inside, NumPy has none."""
        return DType.FLOAT32 if self.compute is DType.BFLOAT16 else self.compute


FP32 = Precision("fp32", DType.FLOAT32)
FP16 = Precision("fp16", DType.FLOAT16)
BF16 = Precision("bf16", DType.BFLOAT16)
INT8 = Precision("int8", DType.FLOAT32, eight_bits=EightBits.INT8)  # Note [Types around int8]
FP8 = Precision("fp8", DType.FLOAT16, eight_bits=EightBits.FP8)
_NAMED = {precision.name: precision for precision in (FP32, FP16, BF16, INT8, FP8)}

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
COMPUTE = {"fp32": DType.FLOAT32, "fp16": DType.FLOAT16}
CACHES = COMPUTE | {"int8": DType.INT8}


def frame_precision(name: str, *, compute: str | None, int4_block: int) -> Precision:
    """Of the three frame graphs: one of `PRECISIONS`.

    Args:
        compute: around rounded weights, `fp32` or `fp16`; None: what the table above says.
    """
    precision = int4_precision(int4_block, DType.FLOAT16) if name == "int4" else _NAMED[name]
    return replace(precision, compute=COMPUTE[compute]) if compute else precision


def language_precision(name: str, *, int4_block: int, cache: str | None = None) -> Precision:
    """Of the language model: one of `PRECISIONS`, as ONNX Runtime's graph has it.

    Eight-bit scales are exact in float16 whatever is around them: TensorRT's graphs share the levels.

    Args:
        cache: of keys and values, one of `CACHES`; None: as products.
    """
    precision = int4_precision(int4_block) if name == "int4" else _NAMED[name]
    if precision.eight_bits:
        precision = replace(precision, scales=DType.FLOAT16)
    return replace(precision, cache=CACHES[cache]) if cache else precision


def int4_precision(block: int, compute: DType = DType.FLOAT32) -> Precision:
    """Four-bit weights; float32 in between is what ONNX Runtime's CPU kernels want, float16 TensorRT."""
    return Precision("int4", compute, int4_block=block)
