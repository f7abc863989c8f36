"""The contract of every graph: names, dtypes and shapes, said once.

Export builds graphs to it, the manifest carries it, the runtime and every engine
are checked against it. A dimension is a number or a name:

    n  frames in the batch        R  rows of stored features: 1+N, or N without the class token
    L  question tokens            T  tokens of the sequence in this call
    cache  length of the key-value buffers; past and present are one buffer
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from llamavid.config import LanguageConfig, ModelConfig

Dim = int | str
MAX_DIGITS = 18

ATTENTION, RELEVANCE = "attention", "relevance"  # of the context graph; bundles made before have neither


class DType(str, enum.Enum):
    """Element types at a graph's boundary."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT64 = "int64"
    INT32 = "int32"
    INT8 = "int8"

    @property
    def numpy(self) -> np.dtype:
        """NumPy has no bfloat16: its bits are uint16."""
        return np.dtype("uint16" if self is DType.BFLOAT16 else self.value)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.numpy.itemsize


class Lowering(str, enum.Enum):
    """How the language model's attention and cache are written, by what runs them."""

    ONNX_RUNTIME = "onnxruntime"  # GroupQueryAttention; past and present are one buffer
    STATIC = "static"  # TensorScatter and Attention, from TensorRT 10.15 on; past and present are one buffer
    PRIMITIVE = "primitive"  # standard operations of opset 21, for TensorRT 10.3; gives the new rows alone


@dataclass(frozen=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: DType
    dims: tuple[str, ...]  # numbers are written as text, so that a manifest has one type

    def __post_init__(self) -> None:
        """Raises `ValueError` for a number of more digits than a dimension has."""
        if any(len(dim) > MAX_DIGITS for dim in self.dims if dim.isdecimal()):
            raise ValueError(f"{self.name!r} has a dimension of more than {MAX_DIGITS} digits")

    @property
    def shape(self) -> tuple[Dim, ...]:
        return tuple(int(dim) if dim.isdecimal() else dim for dim in self.dims)


@dataclass(frozen=True)
class GraphContract:
    """One graph's boundary."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def spec(self, name: str) -> TensorSpec:
        return next(spec for spec in (*self.inputs, *self.outputs) if spec.name == name)


def _spec(name: str, dtype: DType, *dims: Dim) -> TensorSpec:
    return TensorSpec(name, dtype, tuple(str(dim) for dim in dims))


def vision_contract(config: ModelConfig, dtype: DType, features: DType | None = None) -> GraphContract:
    """Encoder: normalized pixels to features, class token first.

    `features` is their type where it is another than the rest's: float16 does not hold every encoder's.
    """
    side = config.vision.image_size
    return GraphContract(
        (_spec("pixels", dtype, "n", 3, side, side),),
        (_spec("features", features or dtype, "n", 1 + config.vision.patches, config.vision.width),),
    )


def content_contract(config: ModelConfig, dtype: DType, features: DType | None = None) -> GraphContract:
    """Content projector: features to content tokens, text-free."""
    return GraphContract(
        (_spec("features", features or dtype, "n", "R", config.vision.width),),
        (_spec("content_tokens", dtype, "n", config.content_tokens, config.language.hidden),),
    )


def context_contract(config: ModelConfig, dtype: DType, features: DType | None = None) -> GraphContract:
    """Q-Former, context attention and projector: features and one question to context tokens.

    Beside them, what the attention looked at: `attention`, the weights of the N patches, which sum to 1,
    and `relevance`, one number a frame (Note [Relevance] in `llamavid.model.compressor`).
    """
    return GraphContract(
        (
            _spec("features", features or dtype, "n", "R", config.vision.width),
            _spec("question_ids", DType.INT64, 1, "L"),
        ),
        (
            _spec("context_tokens", dtype, "n", 1, config.language.hidden),
            _spec(ATTENTION, DType.FLOAT32, "n", config.vision.patches),
            _spec(RELEVANCE, DType.FLOAT32, "n"),
        ),
    )


def language_contract(
    language: LanguageConfig,
    dtype: DType,
    lowering: Lowering = Lowering.ONNX_RUNTIME,
    *,
    cache: DType | None = None,
) -> GraphContract:
    """Language model: embeddings and what was read before -> the last token's logits, and the longer cache.

    `total_length` counts the tokens in the cache after this call. What the cache holds behind them is never
    seen, but must be finite (zeros at first): the TensorRT lowerings multiply it by a weight of zero.
    `present.*` are `past.*` with the T new rows in place, in one buffer; `new.*`, of the primitive lowering,
    are these rows alone, which the caller writes to `past.*` before the next call. `cache` is the type of
    keys and values where it is another than `dtype`.
    """
    held, kept = cache or dtype, (1, language.kv_heads, "cache", language.head_dim)
    rows = (1, language.kv_heads, "T", language.head_dim)
    given, written = ("new", rows) if lowering is Lowering.PRIMITIVE else ("present", kept)
    layers = range(language.layers)
    return GraphContract(
        (
            _spec("inputs_embeds", dtype, 1, "T", language.hidden),
            _spec("total_length", DType.INT32, 1),
            *(_spec(f"past.{i}.{kind}", held, *kept) for i in layers for kind in ("key", "value")),
        ),
        (
            _spec("logits", DType.FLOAT32, 1, language.vocab_size),
            *(_spec(f"{given}.{i}.{kind}", held, *written) for i in layers for kind in ("key", "value")),
        ),
    )
