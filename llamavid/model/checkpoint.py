"""A LLaMA-VID checkpoint in its release layout, opened: what it holds, under our names.

Gives the model's configuration, the tokenizer files and every tensor by the name
that it has in our modules (`vision.`, `text_decoder.`, `compressor.`,
`language.`), one at a time. Facts section 8 is the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llamavid.config import ModelConfig, Preprocessing
from llamavid.errors import CheckpointError
from llamavid.model.dimensions import bert_type, clip_preprocessing, model_config, preprocessing_from_file
from llamavid.model.names import is_surplus, our_name
from llamavid.model.parts import parameter_names
from llamavid.model.tensor_files import TensorFile, TensorFolder, read_json
from llamavid.model.vision import resized_position_embedding
from llamavid.tokenizer import LanguageTokenizer, QuestionTokenizer


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    source: TensorFile | TensorFolder
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
        stored = self.tensors[name]
        tensor = stored.source.read(stored.name)
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{stored.name} has dtype {str(tensor.dtype).removeprefix('torch.')}",
                expected="floating-point weights",
                next_step="Start from the published checkpoint: a quantized one is not read.",
            )
        if name == "vision.pos_embed":
            tensor = resized_position_embedding(tensor.float(), self.config.vision.patches)
        return tensor.to(dtype)

    def fill(self, part: str, module: nn.Module, *, dtype: torch.dtype, device: str | torch.device) -> None:
        """Gives `module`, built on the meta device, its weights: one at a time, so that one copy is the peak.

        Raises:
            CheckpointError: a tensor has another shape.
        """
        for name, parameter in dict(module.named_parameters()).items():
            tensor = self.read(f"{part}.{name}", dtype)
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{self.tensors[f'{part}.{name}'].name} has shape {list(tensor.shape)}",
                    expected=f"{list(parameter.shape)} from config.json and the other weights",
                )
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner).register_parameter(
                leaf, nn.Parameter(tensor.to(device), requires_grad=False)
            )


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
        image_processor: the folder or file of the preprocessing constants, or an image size in pixels with
            CLIP's constants, instead of `image_processor` of `config.json`.

    Raises:
        CheckpointError: anything is missing, damaged or not understood.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json", "a LLaMA-VID checkpoint folder")
    roots = (folder, folder.parent, Path())
    weights = TensorFolder(folder)
    tensors, dropped, unexpected = _renamed(weights)
    if vision_tower is not None or not any(name.startswith("vision.") for name in tensors):
        tower = TensorFile(
            _find(vision_tower or settings.get("mm_vision_tower"), roots, "vision tower", "--vision-tower")
        )
        tensors = {name: stored for name, stored in tensors.items() if not name.startswith("vision.")}
        tensors.update({f"vision.{name}": Stored(tower, name) for name in tower})
    _, text_layers = bert_type(settings)
    kept = {name: stored for name, stored in tensors.items() if not is_surplus(name, text_layers=text_layers)}
    dropped += [tensors[name].name for name in tensors if name not in kept]
    embeddings = kept.get("language.model.embed_tokens.weight")
    if settings.get("tie_word_embeddings") and embeddings:
        kept.setdefault("language.lm_head.weight", embeddings)

    vocabulary = _find(text_tokenizer or "bert-base-uncased", roots, "text tokenizer", "--text-tokenizer")
    preprocessing = _preprocessing(settings, image_processor, roots)
    vocabulary_file = vocabulary / "vocab.txt" if vocabulary.is_dir() else vocabulary
    shapes = {name: stored.shape for name, stored in kept.items()}
    config = model_config(settings, shapes, preprocessing, vocabulary_file.parent)
    wanted = parameter_names(config)
    _require(folder, sorted(wanted - kept.keys()))
    unexpected += [stored.name for name, stored in kept.items() if name not in wanted]
    opened = Checkpoint(
        folder=folder,
        config=config,
        tensors={name: kept[name] for name in kept if name in wanted},
        dropped=tuple(sorted(dropped)),
        unexpected=tuple(sorted(unexpected)),
        language_tokenizer=_existing(folder / "tokenizer.model"),
        question_vocabulary=_existing(vocabulary_file),
    )
    _check_tokenizers(opened)
    return opened


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


def _require(folder: Path, missing: list[str]) -> None:
    if missing:
        listed = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise CheckpointError(
            f"{folder} lacks {len(missing)} {'tensor' if len(missing) == 1 else 'tensors'}: {listed}",
            next_step="A shard may be missing, or config.json may belong to another checkpoint.",
        )


def _preprocessing(
    settings: Mapping[str, Any], image_processor: Path | str | int | None, roots: tuple[Path, ...]
) -> Preprocessing:
    wanted = str(image_processor or settings.get("image_processor") or "")
    if wanted.isdecimal():
        return clip_preprocessing(settings, int(wanted))
    option = "--image-processor (a folder, or the image size in pixels)"
    path = _find(wanted, roots, "image processor", option)
    return preprocessing_from_file(settings, path)


def _find(path: Path | str | None, roots: tuple[Path, ...], what: str, option: str) -> Path:
    for root in roots:
        if path and (root / str(path)).exists():
            return root / str(path)
    raise CheckpointError(
        f"the {what} {str(path)!r} was not found in {', '.join(str(root) or '.' for root in roots)}",
        next_step=f"Pass {option}.",
    )


def _check_tokenizers(opened: Checkpoint) -> None:
    """A tokenizer of another model would ask for rows that the embeddings do not have."""
    pieces = LanguageTokenizer(opened.language_tokenizer).size
    words = QuestionTokenizer(opened.question_vocabulary).size - 1  # [DEC] is never asked for
    for file, size, rows in (
        (opened.language_tokenizer, pieces, opened.config.language.vocab_size),
        (opened.question_vocabulary, words, opened.config.text_decoder.vocab_size),
    ):
        if size > rows:
            raise CheckpointError(
                f"{file} has {size} entries",
                expected=f"at most {rows}, the rows of the embeddings",
                next_step="It may belong to another model.",
            )


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing", next_step="Copy it there from the published checkpoint.")
    return file
