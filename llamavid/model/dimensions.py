"""A model's dimensions, read off `config.json` and the shapes of its weights.

Depths and widths come from the weights; what the weights do not tell (heads, kinds,
RoPE, preprocessing constants) from the configuration. What neither allows is a
`CheckpointError` that names the field.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamavid.config import (
    MAX_DIMENSION,
    LanguageConfig,
    ModelConfig,
    Preprocessing,
    TextDecoder,
    TextDecoderConfig,
    VisionConfig,
)
from llamavid.errors import CheckpointError
from llamavid.model.tensor_files import read_json

Shapes = Mapping[str, tuple[int, ...]]  # of every tensor, by our names

_EVA_HEAD_WIDTH = 88
_Q_FORMER_TYPES = ("qformer_pretrain", "qformer_pretrain_freeze", "qformer_pretrain_freeze_all")
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def model_config(
    settings: Mapping[str, Any], shapes: Shapes, preprocessing: Preprocessing, bert: Path
) -> ModelConfig:
    """The whole model's dimensions.

    Args:
        settings: `config.json`.
        bert: folder that may hold BERT's `config.json`, for the number of heads.
    """
    projections = [
        name for name in shapes if re.fullmatch(r"compressor\.content_projector\.\d+\.weight", name)
    ]
    vision = _vision_config(shapes, preprocessing.image_size)
    try:
        return ModelConfig(
            vision=vision,
            text_decoder=_text_decoder_config(settings, shapes, bert),
            language=_language_config(
                settings, stored_layers=_count(shapes, r"language\.model\.layers\.(\d+)\.")
            ),
            preprocessing=preprocessing,
            pool_grid=_pool_grid(settings.get("compress_type"), vision.grid),
            projector_depth=_projector_depth(settings.get("mm_projector_type", "linear"), len(projections)),
        )
    except ValueError as error:
        raise CheckpointError(
            f"config.json and the weights make no model: {error}", expected="those of one checkpoint"
        ) from error


def _vision_config(shapes: Shapes, image_size: int) -> VisionConfig:
    patch = _shape(shapes, "vision.patch_embed.proj.weight", 4)
    depth = _count(shapes, r"vision\.blocks\.(\d+)\.")
    positions = _shape(shapes, "vision.pos_embed", 3)
    if positions[1] < 2 or math.isqrt(positions[1] - 1) ** 2 != positions[1] - 1:
        raise CheckpointError(
            f"pos_embed has shape {list(positions)}", expected="a class row and a square of rows"
        )
    if patch[0] % _EVA_HEAD_WIDTH or 0 in patch or image_size < patch[2] or image_size % patch[2]:
        raise CheckpointError(
            f"the tower has width {patch[0]} and {patch[2]} px patches, for pictures of {image_size} px",
            expected=f"a width that is a multiple of {_EVA_HEAD_WIDTH} and a picture of whole patches",
        )
    return VisionConfig(
        image_size=image_size,
        patch_size=patch[2],
        width=patch[0],
        depth=depth,
        heads=patch[0] // _EVA_HEAD_WIDTH,
        mlp_width=_shape(shapes, "vision.blocks.0.mlp.fc1.weight", 2)[0],
    )


def _text_decoder_config(settings: Mapping[str, Any], shapes: Shapes, bert: Path) -> TextDecoderConfig:
    kind, asked = bert_type(settings)
    vocab_size, width = _shape(shapes, "text_decoder.word_embeddings.weight", 2)
    heads = width // 64  # BERT's, unless its config says otherwise
    if (bert / "config.json").is_file():
        heads = _whole(
            read_json(bert / "config.json", "BERT's config"), "num_attention_heads", bert / "config.json"
        )
    if not heads or width % heads:
        raise CheckpointError(
            f"the text decoder has width {width}", expected=f"a multiple of its {heads} heads"
        )
    layers = _count(shapes, r"text_decoder\.layers\.(\d+)\.")
    if asked and layers != asked:
        raise CheckpointError(
            f"config.json has bert_type raw_bert_layer:{asked}", expected=f"{layers} or less"
        )
    queries = _shape(shapes, "text_decoder.queries", 3)[1] if kind is TextDecoder.Q_FORMER else 0
    return TextDecoderConfig(
        kind=kind,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=_shape(shapes, "text_decoder.layers.0.feed_forward.up.weight", 2)[0],
        vocab_size=vocab_size,
        max_positions=_shape(shapes, "text_decoder.position_embeddings.weight", 2)[0],
        image_width=_shape(shapes, "text_decoder.layers.0.cross_attention.key.weight", 2)[1],
        queries=queries,
        projects_image="text_decoder.image_projection.weight" in shapes,
    )


def _language_config(settings: Mapping[str, Any], *, stored_layers: int) -> LanguageConfig:
    hidden, heads = _whole(settings, "hidden_size"), _whole(settings, "num_attention_heads")
    kv_heads, layers = (
        _whole(settings, "num_key_value_heads", default=heads),
        _whole(settings, "num_hidden_layers"),
    )
    if hidden % heads or heads % kv_heads:
        raise CheckpointError(
            f"config.json has hidden_size {hidden}, num_attention_heads {heads} and num_key_value_heads "
            f"{kv_heads}",
            expected="each a multiple of the next",
        )
    if layers < stored_layers:
        raise CheckpointError(
            f"config.json has num_hidden_layers {layers}",
            expected=f"{stored_layers}, as the checkpoint holds",
        )
    theta, factor = _rope(settings)
    positions = _whole(settings, "max_position_embeddings")
    extended = int(min(_whole(settings, "max_token", default=positions), positions * factor))
    return LanguageConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_whole(settings, "head_dim", default=hidden // heads),
        mlp_width=_whole(settings, "intermediate_size"),
        vocab_size=_whole(settings, "vocab_size"),
        norm_eps=_positive(settings, "rms_norm_eps", default=1e-6),
        rope_theta=theta,
        rope_factor=factor,
        context_length=max(positions, extended),
        bos_id=_whole(settings, "bos_token_id", default=1),
        eos_id=_whole(settings, "eos_token_id", default=2),
    )


def _rope(settings: Mapping[str, Any]) -> tuple[float, float]:
    """RoPE base and linear factor, from transformers 4 or 5 spelling."""
    scaling = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else None
    if kind not in ("linear", "default"):
        raise CheckpointError(f"config.json has rope_scaling {scaling!r}", expected="type linear, or none")
    theta = _positive(settings, "rope_theta", default=_positive(scaling, "rope_theta", default=10000.0))
    return theta, _positive(scaling, "factor", "rope_scaling of config.json") if kind == "linear" else 1.0


def _pool_grid(compress_type: str | None, grid: int) -> int | None:
    if not compress_type:
        return None
    if compress_type == "mean":
        return 1
    match = re.fullmatch(r"grid:([1-9]\d{0,8})", str(compress_type))
    if match and int(match[1]) <= grid:
        return int(match[1])
    raise CheckpointError(
        f"config.json has compress_type {compress_type!r}",
        expected=f"mean, grid:g with g up to {grid}, or none",
    )


def _projector_depth(kind: str, found: int) -> int:
    match = re.fullmatch(r"linear|mlp([1-9]\d{0,8})x_gelu", str(kind))
    if not match:
        raise CheckpointError(f"config.json has mm_projector_type {kind!r}", expected="linear or mlpKx_gelu")
    depth = int(match[1] or 1)
    if depth != found:
        raise CheckpointError(f"mm_projector has {found} linear layers", expected=f"{depth} for {kind!r}")
    return depth


def bert_type(settings: Mapping[str, Any]) -> tuple[TextDecoder, int | None]:
    """The kind of text decoder, and how many layers of a raw BERT are run (None: all)."""
    name = settings.get("bert_type")
    if name in _Q_FORMER_TYPES:
        return TextDecoder.Q_FORMER, None
    if match := re.fullmatch(r"raw_bert_layer:([1-9]\d{0,8})", str(name)):
        return TextDecoder.RAW_BERT, int(match[1])
    raise CheckpointError(
        f"config.json has bert_type {name!r}", expected=f"{', '.join(_Q_FORMER_TYPES)} or raw_bert_layer:K"
    )


def clip_preprocessing(settings: Mapping[str, Any], image_size: int) -> Preprocessing:
    """CLIP's constants for pictures of this size."""
    return Preprocessing(image_size, _CLIP_MEAN, _CLIP_STD, _pads(settings))


def preprocessing_from_file(settings: Mapping[str, Any], path: Path) -> Preprocessing:
    """The constants of a `preprocessor_config.json`, or of the folder that holds it."""
    file = path / "preprocessor_config.json" if path.is_dir() else path
    constants = read_json(file, "CLIP preprocessing constants")
    try:
        size, crop = _side(constants["size"]), _side(constants["crop_size"])
        mean, std = (tuple(float(x) for x in constants[key]) for key in ("image_mean", "image_std"))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{file} has no usable size, crop, mean and std ({error!r})",
            expected="CLIP preprocessing constants",
        ) from error
    if (
        size != crop
        or constants.get("resample", 3) != 3
        or len(mean) != 3
        or len(std) != 3
        or not all(map(math.isfinite, mean))
        or not all(0 < x < math.inf for x in std)
        or size >= MAX_DIMENSION
    ):
        raise CheckpointError(
            f"{file} asks for size {size}, crop {crop}, resample {constants.get('resample')}, mean {mean}, "
            f"std {std}",
            expected="size and crop alike, bicubic (3), three channels, positive std",
        )
    return Preprocessing(size, mean, std, _pads(settings))


def _pads(settings: Mapping[str, Any]) -> bool:
    return settings.get("image_aspect_ratio") == "pad"


def _side(size: int | Mapping[str, int]) -> int:
    """`224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`."""
    sides = {size} if isinstance(size, int) else {int(side) for side in size.values()}
    if len(sides) != 1:
        raise ValueError(f"size {size} is not one side")
    return int(sides.pop())


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(
            f"the checkpoint has no {name}", next_step="A shard may be missing, or this is not LLaMA-VID."
        )
    shape = shapes[name]
    if len(shape) != rank:
        raise CheckpointError(f"{name} has shape {list(shape)}", expected=f"{rank} dimensions")
    return shape


def _count(shapes: Shapes, pattern: str) -> int:
    return 1 + max((int(m[1]) for name in shapes if (m := re.match(pattern, name))), default=-1)


def _whole(
    settings: Mapping[str, Any], key: str, file: Path | str = "config.json", *, default: int | None = None
) -> int:
    value = default if settings.get(key) is None else settings[key]
    if type(value) is not int or not 0 < value < MAX_DIMENSION:
        expected = f"a positive whole number below {MAX_DIMENSION}"
        raise CheckpointError(f"{file} has {key} = {value!r}", expected=expected)
    return value


def _positive(
    settings: Mapping[str, Any], key: str, where: str = "config.json", *, default: float | None = None
) -> float:
    value = default if settings.get(key) is None else settings[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise CheckpointError(f"{where} has {key} = {value!r}", expected="a positive number")
    return float(value)
