"""A LLaMA-VID checkpoint in its release layout, opened: what it holds, under our names.

Gives the model's configuration, the tokenizer files and every tensor by the name
that it has in our modules (`vision.`, `text_decoder.`, `compressor.`,
`language.`), one at a time. Facts section 8 is the layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from llamavid.config import LanguageConfig, ModelConfig, Preprocessing, TextDecoder, TextDecoderConfig, VisionConfig
from llamavid.errors import CheckpointError
from llamavid.model.tensor_files import TensorFile, TensorFolder
from llamavid.model.vision import resized_position_embedding

_EVA_DEPTH = 39  # the reference never runs the original's last block
_EVA_HEAD_WIDTH = 88
_PATH_KEYS_ROOTS = "the checkpoint, the folder beside it, or the current folder"

# Release name -> our name; None = known and dropped on purpose. First match wins.
_RENAMES: tuple[tuple[str, str | None], ...] = (
    (r".*rotary_emb\.inv_freq", None),  # computed
    (r".*embeddings\.position_ids", None),  # 0, 1, 2, ...
    (r"model\.vlm_att_encoder\.(cls|bert\.pooler)\..*", None),  # BERT's heads, never run
    (r"model\.vision_tower\.vision_tower\.(.*)", r"vision.\1"),
    (r"model\.vlm_att_query", r"text_decoder.queries"),
    (r"model\.vlm_att_ln\.(.*)", r"text_decoder.image_norm.\1"),
    (r"model\.vlm_att_bert_proj\.(.*)", r"text_decoder.image_projection.\1"),
    (r"model\.vlm_att_encoder\.bert\.embeddings\.LayerNorm\.(.*)", r"text_decoder.embedding_norm.\1"),
    (r"model\.vlm_att_encoder\.bert\.embeddings\.(.*)", r"text_decoder.\1"),
    (r"model\.vlm_att_encoder\.bert\.encoder\.layer\.(\d+)\.(.*)", r"text_decoder.layers.\1.\2"),
    (r"model\.vlm_att_projector\.(.*)", r"compressor.query_projector.\1"),
    (r"model\.vlm_att_key_projector\.(.*)", r"compressor.key_projector.\1"),
    (r"model\.vlm_att_val_projector\.(.*)", r"compressor.value_projector.\1"),
    (r"model\.mm_projector\.(weight|bias)", r"compressor.content_projector.0.\1"),
    (r"model\.mm_projector\.(.*)", r"compressor.content_projector.\1"),
    (r"(model\.(?:layers|embed_tokens|norm)\..*|lm_head\..*)", r"language.\1"),
)
_LAYER_RENAMES: tuple[tuple[str, str], ...] = (  # inside text_decoder.layers.N
    (r"attention\.self\.(query|key|value)", r"attention.\1"),
    (r"crossattention\.self\.(query|key|value)", r"cross_attention.\1"),
    (r"attention\.output\.dense", r"attention.output"),
    (r"attention\.output\.LayerNorm", r"attention.norm"),
    (r"crossattention\.output\.dense", r"cross_attention.output"),
    (r"crossattention\.output\.LayerNorm", r"cross_attention.norm"),
    (r"intermediate\.dense", r"feed_forward.up"),
    (r"output\.dense", r"feed_forward.down"),
    (r"output\.LayerNorm", r"feed_forward.norm"),
    (r"intermediate_query\.dense", r"query_feed_forward.up"),
    (r"output_query\.dense", r"query_feed_forward.down"),
    (r"output_query\.LayerNorm", r"query_feed_forward.norm"),
)
_TOWER_EXTRAS = re.compile(r"norm\.|fc_norm\.|head\.|mask_token$|lm_head\.|rel_pos_bias\.")
_PARTS = ("vision", "text_decoder", "compressor", "language")

_Q_FORMER_TYPES = ("qformer_pretrain", "qformer_pretrain_freeze", "qformer_pretrain_freeze_all")
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    source: Union[TensorFile, TensorFolder]
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape(self.name)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: nothing is read yet but names and shapes."""

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, Stored]  # by our names
    dropped: tuple[str, ...]  # stored names that are known and not needed
    unexpected: tuple[str, ...]  # stored names that nobody knows
    language_tokenizer: Path
    question_vocabulary: Path

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor by our name, `dtype`, on the CPU. The position embedding comes in the model's size."""
        tensor = self.tensors[name].source.read(self.tensors[name].name)
        if name == "vision.pos_embed":
            tensor = resized_position_embedding(tensor, self.config.vision.patches)
        return tensor.to(dtype)

    def fill(self, part: str, module: nn.Module, *, dtype: torch.dtype, device: str | torch.device) -> None:
        """Gives `module`, built on the meta device, its weights: one at a time, so that one copy is the peak.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        wanted = dict(module.named_parameters())
        missing = [name for name in wanted if f"{part}.{name}" not in self.tensors]
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {len(missing)} tensors of {part}: {', '.join(missing[:4])}"
                + (", ..." if len(missing) > 4 else ""),
                next_step="A shard may be missing, or config.json may belong to another checkpoint.",
            )
        for name, parameter in wanted.items():
            tensor = self.read(f"{part}.{name}", dtype)
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{self.tensors[f'{part}.{name}'].name} has shape {list(tensor.shape)}",
                    expected=f"{list(parameter.shape)} from config.json and the other weights",
                )
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner).register_parameter(leaf, nn.Parameter(tensor.to(device), requires_grad=False))


def open_checkpoint(
    folder: Path | str,
    *,
    vision_tower: Path | str | None = None,
    text_tokenizer: Path | str | None = None,
    image_processor: Path | str | int | None = None,
) -> Checkpoint:
    """Opens a release folder.

    Args:
        folder: holds `config.json`, the shards and `tokenizer.model`.
        vision_tower: the EVA file, instead of `mm_vision_tower`; a tower inside the checkpoint is preferred
            unless this is given.
        text_tokenizer: BERT's folder or its `vocab.txt`, instead of a `bert-base-uncased` folder nearby.
        image_processor: the folder or file of the preprocessing constants, or an image size in pixels with CLIP's
            constants, instead of `image_processor` of `config.json`.

    Raises:
        CheckpointError: anything is missing, damaged or not understood.
    """
    folder = Path(folder)
    settings = _read_json(folder / "config.json", "a LLaMA-VID checkpoint folder")
    roots = (folder, folder.parent, Path())
    weights = TensorFolder(folder)
    tensors, dropped, unexpected = _renamed(weights)
    if vision_tower is not None or not any(name.startswith("vision.") for name in tensors):
        tower = TensorFile(_find(vision_tower or settings.get("mm_vision_tower"), roots, "vision tower", "--vision-tower"))
        tensors = {name: stored for name, stored in tensors.items() if not name.startswith("vision.")}
        tensors.update({f"vision.{name}": Stored(tower, name) for name in tower})
    kept = {name: stored for name, stored in tensors.items() if not _is_surplus(name, settings)}
    dropped += [tensors[name].name for name in tensors if name not in kept]
    if settings.get("tie_word_embeddings") and "language.lm_head.weight" not in kept:
        kept["language.lm_head.weight"] = kept["language.model.embed_tokens.weight"]

    vocabulary = _find(text_tokenizer or "bert-base-uncased", roots, "text tokenizer", "--text-tokenizer")
    preprocessing = _preprocessing(settings, image_processor, roots)
    vocabulary_file = vocabulary / "vocab.txt" if vocabulary.is_dir() else vocabulary
    return Checkpoint(
        folder=folder,
        config=_model_config(settings, kept, preprocessing, vocabulary_file.parent),
        tensors=kept,
        dropped=tuple(sorted(dropped)),
        unexpected=tuple(sorted(unexpected)),
        language_tokenizer=_existing(folder / "tokenizer.model"),
        question_vocabulary=_existing(vocabulary_file),
    )


def _renamed(weights: TensorFolder) -> tuple[dict[str, Stored], list[str], list[str]]:
    tensors: dict[str, Stored] = {}
    dropped: list[str] = []
    unexpected: list[str] = []
    for stored_name in weights:
        ours = our_name(stored_name)
        if ours:
            tensors[ours] = Stored(weights, stored_name)
        else:
            (dropped if ours is None else unexpected).append(stored_name)
    return tensors, dropped, unexpected


def our_name(stored_name: str) -> str | None:
    """A release name under our names; None when it is dropped on purpose, "" when nobody knows it."""
    for pattern, ours in _RENAMES:
        match = re.fullmatch(pattern, stored_name)
        if match:
            return None if ours is None else _layer_name(match.expand(ours))
    return ""


def _layer_name(name: str) -> str:
    match = re.fullmatch(r"(text_decoder\.layers\.\d+\.)(.*)\.(weight|bias)", name)
    if not match:
        return name
    for pattern, ours in _LAYER_RENAMES:
        if inner := re.fullmatch(pattern, match[2]):
            return f"{match[1]}{inner.expand(ours)}.{match[3]}"
    return ""


def _is_surplus(name: str, settings: Mapping[str, Any]) -> bool:
    """Weights of the original networks that the reference never runs."""
    part, _, rest = name.partition(".")
    if part == "vision":
        block = re.match(r"blocks\.(\d+)\.", rest)
        return bool(_TOWER_EXTRAS.match(rest)) or bool(block and int(block[1]) >= _EVA_DEPTH)
    kind, layers = _bert_type(settings)
    layer = re.match(r"layers\.(\d+)\.", rest) if part == "text_decoder" else None
    return kind is TextDecoder.RAW_BERT and bool(layer and int(layer[1]) >= layers)


def _bert_type(settings: Mapping[str, Any]) -> tuple[TextDecoder, int]:
    """The kind of text decoder, and how many layers of a raw BERT are run."""
    name = settings.get("bert_type")
    if name in _Q_FORMER_TYPES:
        return TextDecoder.Q_FORMER, 0
    if match := re.fullmatch(r"raw_bert_layer:(\d+)", str(name)):
        return TextDecoder.RAW_BERT, int(match[1])
    raise CheckpointError(
        f"config.json has bert_type {name!r}", expected=f"{', '.join(_Q_FORMER_TYPES)} or raw_bert_layer:K"
    )


def _model_config(
    settings: Mapping[str, Any], tensors: Mapping[str, Stored], preprocessing: Preprocessing, bert: Path
) -> ModelConfig:
    projections = [name for name in tensors if re.fullmatch(r"compressor\.content_projector\.\d+\.weight", name)]
    return ModelConfig(
        vision=_vision_config(tensors, preprocessing.image_size),
        text_decoder=_text_decoder_config(settings, tensors, bert),
        language=_language_config(settings),
        preprocessing=preprocessing,
        pool_grid=_pool_grid(settings.get("compress_type")),
        projector_depth=_projector_depth(settings.get("mm_projector_type", "linear"), len(projections)),
    )


def _vision_config(tensors: Mapping[str, Stored], image_size: int) -> VisionConfig:
    patch = _shape(tensors, "vision.patch_embed.proj.weight", 4)
    depth = _count(tensors, r"vision\.blocks\.(\d+)\.")
    if patch[0] % _EVA_HEAD_WIDTH or image_size % patch[2]:
        raise CheckpointError(
            f"the vision tower has width {patch[0]} and patches of {patch[2]} px for pictures of {image_size} px",
            expected=f"a width that is a multiple of {_EVA_HEAD_WIDTH} and a picture of whole patches",
        )
    return VisionConfig(
        image_size=image_size,
        patch_size=patch[2],
        width=patch[0],
        depth=depth,
        heads=patch[0] // _EVA_HEAD_WIDTH,
        mlp_width=_shape(tensors, "vision.blocks.0.mlp.fc1.weight", 2)[0],
    )


def _text_decoder_config(
    settings: Mapping[str, Any], tensors: Mapping[str, Stored], bert: Path
) -> TextDecoderConfig:
    kind, _ = _bert_type(settings)
    vocab_size, width = _shape(tensors, "text_decoder.word_embeddings.weight", 2)
    heads = width // 64  # BERT's, unless its config says otherwise
    if (bert / "config.json").is_file():
        heads = _whole(_read_json(bert / "config.json", "BERT's config"), "num_attention_heads", bert / "config.json")
    queries = _shape(tensors, "text_decoder.queries", 3)[1] if kind is TextDecoder.Q_FORMER else 0
    return TextDecoderConfig(
        kind=kind,
        width=width,
        layers=_count(tensors, r"text_decoder\.layers\.(\d+)\."),
        heads=heads,
        mlp_width=_shape(tensors, "text_decoder.layers.0.feed_forward.up.weight", 2)[0],
        vocab_size=vocab_size,
        max_positions=_shape(tensors, "text_decoder.position_embeddings.weight", 2)[0],
        image_width=_shape(tensors, "text_decoder.layers.0.cross_attention.key.weight", 2)[1],
        queries=queries,
        projects_image="text_decoder.image_projection.weight" in tensors,
    )


def _language_config(settings: Mapping[str, Any]) -> LanguageConfig:
    hidden, heads = _whole(settings, "hidden_size"), _whole(settings, "num_attention_heads")
    theta, factor = _rope(settings)
    positions = _whole(settings, "max_position_embeddings")
    extended = min(int(settings.get("max_token") or 0), int(positions * factor))
    return LanguageConfig(
        hidden=hidden,
        layers=_whole(settings, "num_hidden_layers"),
        heads=heads,
        kv_heads=int(settings.get("num_key_value_heads") or heads),
        head_dim=int(settings.get("head_dim") or hidden // heads),
        mlp_width=_whole(settings, "intermediate_size"),
        vocab_size=_whole(settings, "vocab_size"),
        norm_eps=float(settings.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_factor=factor,
        context_length=max(positions, extended),
        bos_id=int(settings.get("bos_token_id", 1)),
        eos_id=int(settings.get("eos_token_id", 2)),
    )


def _rope(settings: Mapping[str, Any]) -> tuple[float, float]:
    """RoPE base and linear factor, from transformers 4 or 5 spelling."""
    scaling = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("linear", "default"):
        raise CheckpointError(f"config.json asks for rope scaling {kind!r}", expected="linear, or none")
    theta = float(settings.get("rope_theta") or scaling.get("rope_theta") or 10000.0)
    return theta, float(scaling.get("factor", 1.0)) if kind == "linear" else 1.0


def _pool_grid(compress_type: str | None) -> int | None:
    if not compress_type:
        return None
    if compress_type == "mean":
        return 1
    if match := re.fullmatch(r"grid:([1-9]\d*)", compress_type):
        return int(match[1])
    raise CheckpointError(f"config.json has compress_type {compress_type!r}", expected="mean, grid:g or none")


def _projector_depth(kind: str, found: int) -> int:
    match = re.fullmatch(r"linear|mlp([1-9]\d*)x_gelu", str(kind))
    if not match:
        raise CheckpointError(f"config.json has mm_projector_type {kind!r}", expected="linear or mlpKx_gelu")
    depth = int(match[1] or 1)
    if depth != found:
        raise CheckpointError(f"mm_projector has {found} linear layers", expected=f"{depth} for {kind!r}")
    return depth


def _preprocessing(
    settings: Mapping[str, Any], image_processor: Path | str | int | None, roots: tuple[Path, ...]
) -> Preprocessing:
    pad = settings.get("image_aspect_ratio") == "pad"
    if isinstance(image_processor, int) or str(image_processor).isdecimal():
        return Preprocessing(int(image_processor or 0), _CLIP_MEAN, _CLIP_STD, pad)
    wanted = image_processor or settings.get("image_processor")
    path = _find(wanted, roots, "image processor", "--image-processor (a folder, or the image size in pixels)")
    file = path / "preprocessor_config.json" if path.is_dir() else path
    constants = _read_json(file, "CLIP preprocessing constants")
    try:
        size, crop = _side(constants["size"]), _side(constants["crop_size"])
        mean, std = (tuple(float(x) for x in constants[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} has no usable size, mean and std ({error!r})") from error
    if size != crop or constants.get("resample", 3) != 3 or len(mean) != 3 or len(std) != 3:
        raise CheckpointError(
            f"{file} asks for size {size}, crop {crop}, resample {constants.get('resample')}",
            expected="size and crop alike, bicubic (3), three channels",
        )
    return Preprocessing(size, mean, std, pad)  # type: ignore[arg-type]  # lengths checked above


def _side(size: int | Mapping[str, int]) -> int:
    """`224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}`."""
    sides = {size} if isinstance(size, int) else {int(side) for side in size.values()}
    if len(sides) != 1:
        raise ValueError(f"size {size} is not one side")
    return int(sides.pop())


def _shape(tensors: Mapping[str, Stored], name: str, rank: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(
            f"the checkpoint has no {name}", next_step="A shard may be missing, or this is not LLaMA-VID."
        )
    shape = tensors[name].shape
    if len(shape) != rank:
        raise CheckpointError(f"{tensors[name].name} has shape {list(shape)}", expected=f"{rank} dimensions")
    return shape


def _count(tensors: Mapping[str, Stored], pattern: str) -> int:
    return 1 + max((int(m[1]) for name in tensors if (m := re.match(pattern, name))), default=-1)


def _whole(settings: Mapping[str, Any], key: str, file: Path | str = "config.json") -> int:
    value = settings.get(key)
    if type(value) is not int or value <= 0:
        raise CheckpointError(f"{file} has {key} = {value!r}", expected="a positive whole number")
    return value


def _read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})", expected=what) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds a {type(data).__name__}", expected=what)
    return data


def _find(path: Path | str | None, roots: tuple[Path, ...], what: str, option: str) -> Path:
    for root in roots:
        if path and (root / path).exists():
            return root / path
    raise CheckpointError(
        f"the {what} {str(path)!r} was not found in {', '.join(str(root) or '.' for root in roots)}",
        next_step=f"Pass {option}.",
    )


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing", next_step="Copy it there from the published checkpoint.")
    return file
