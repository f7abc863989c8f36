"""What a LLaMA-VID model is, in numbers: the dimensions every room agrees on.

Plain frozen dataclasses, read from a checkpoint by `llamavid.model.checkpoint`
and from a bundle's manifest by `llamavid.bundle`. Knows nothing about tensors.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

MAX_DIMENSION = 2**31


class TextDecoder(str, enum.Enum):
    """The two networks that read the question beside the frame (paper Table 8)."""

    Q_FORMER = "q_former"
    RAW_BERT = "raw_bert"


@dataclass(frozen=True)
class VisionConfig:
    """EVA ViT-g, as read off its weights."""

    image_size: int  # S, pixels
    patch_size: int
    width: int  # C
    depth: int  # blocks
    heads: int
    mlp_width: int
    norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """N, without the class token."""
        return self.grid**2


@dataclass(frozen=True)
class TextDecoderConfig:
    """Q-Former or raw BERT, as read off its weights and its `config.json`."""

    kind: TextDecoder
    width: int  # H
    layers: int
    heads: int
    mlp_width: int
    vocab_size: int  # with the added [DEC]
    max_positions: int
    image_width: int  # of the rows the cross-attention reads
    queries: int  # M; 0 for raw BERT
    projects_image: bool  # `vlm_att_bert_proj` is there
    norm_eps: float = 1e-12
    image_norm_eps: float = 1e-5
    max_tokens: int = 256  # of one question, with [CLS] and [SEP]

    def has_cross_attention(self, layer: int) -> bool:
        """Every layer of raw BERT, every other layer of the Q-Former."""
        return self.kind is TextDecoder.RAW_BERT or layer % 2 == 0


@dataclass(frozen=True)
class LanguageConfig:
    """Vicuna: the LLaMA fields that the mathematics needs."""

    hidden: int  # D
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_factor: float  # positions are divided by it
    context_length: int  # tokens
    bos_id: int = 1
    eos_id: int = 2


@dataclass(frozen=True)
class Preprocessing:
    """CLIP preprocessing constants; the arithmetic is `llamavid.runtime.pixels`."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad_pictures: bool  # pictures, not videos, are padded to a square first


@dataclass(frozen=True)
class ModelConfig:
    """The whole model."""

    vision: VisionConfig
    text_decoder: TextDecoderConfig
    language: LanguageConfig
    preprocessing: Preprocessing
    pool_grid: int | None  # content tokens: 1 = `mean`, g = `grid:g`, None = every patch
    projector_depth: int  # Linear layers of `mm_projector`

    @property
    def content_tokens(self) -> int:
        """n: content tokens a frame."""
        if self.pool_grid is None:
            return self.vision.patches
        return (self.vision.grid // self.pool_kernel) ** 2

    @property
    def pool_kernel(self) -> int:
        """Kernel and stride of the average pooling (facts section 6)."""
        return self.vision.grid // (self.pool_grid or self.vision.grid)

    @property
    def tokens_per_frame(self) -> int:
        """Context token and content tokens."""
        return 1 + self.content_tokens

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> ModelConfig:
        """Reads what `to_json` wrote; a wrong key or type is a `ValueError` naming it."""
        return dataclass_from_json(cls, data)

    def __post_init__(self) -> None:
        """Raises `ValueError` for a dimension that cannot be, or two that contradict each other."""
        for part in (self.vision, self.text_decoder, self.language, self.preprocessing, self):
            for field in dataclasses.fields(part):
                _check_number(f"{type(part).__name__}.{field.name}", getattr(part, field.name))
        if not all(map(math.isfinite, self.preprocessing.mean)):
            raise ValueError(f"preprocessing.mean is {self.preprocessing.mean}")
        if not all(0 < value < math.inf for value in self.preprocessing.std):
            raise ValueError(f"preprocessing.std is {self.preprocessing.std}, not above 0")
        if self.preprocessing.image_size != self.vision.image_size:
            raise ValueError(
                f"preprocessing makes {self.preprocessing.image_size} px and the encoder reads "
                f"{self.vision.image_size} px"
            )
        if not (self.pool_grid or 1) <= self.vision.grid:
            raise ValueError(f"a grid of {self.pool_grid} in {self.vision.grid} x {self.vision.grid} patches")


def _check_number(where: str, value: object) -> None:
    """Counts are at least 1 but for a few, and not so large that their product is no number of anything."""
    least = 0 if where.endswith((".queries", ".bos_id", ".eos_id")) else 1
    if type(value) is int and not least <= value < MAX_DIMENSION:
        raise ValueError(f"{where} is {value}, not from {least} to {MAX_DIMENSION}")
    if type(value) is float and not 0 < value < math.inf:
        raise ValueError(f"{where} is {value}, not a number above 0")


def dataclass_from_json(cls: type[T], data: object, where: str = "") -> T:
    """Builds the dataclass from untrusted JSON: its fields and no other, of exactly their types.

    One whose default is None may be missing: files made before there was such a field can be read.

    Raises:
        ValueError: naming the field that is missing, unknown or of another type.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {type(data).__name__}, not an object")
    hints = typing.get_type_hints(cls)
    optional = {field.name for field in dataclasses.fields(cls) if field.default is None}  # type: ignore[arg-type]
    odd = sorted((set(hints) ^ set(data)) - (optional - set(data)))
    if odd:
        raise ValueError(f"{where} has missing or unknown fields: {', '.join(map(repr, odd))}")
    return cls(**{name: _typed(hints[name], data[name], f"{where}.{name}") for name in hints if name in data})


def _typed(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return dataclass_from_json(typing.cast(type, hint), value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _typed(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is tuple:
        kinds = (args[0],) * len(value) if Ellipsis in args and isinstance(value, list) else args
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ValueError(f"{where} is not a list of the right length")
        items = enumerate(zip(kinds, value, strict=True))
        return tuple(_typed(kind, item, f"{where}[{i}]") for i, (kind, item) in items)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        return {str(key): _typed(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where} is a number of {len(str(value))} digits") from error
    if hint is not Any and type(value) is not hint:
        raise ValueError(f"{where} is {value!r}, not {hint.__name__}")
    return value
