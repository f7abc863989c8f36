"""What training starts from: others' published weights and fresh ones, as one model.

Takes the places of the files, gives every weight by our name, where it lies. Checks names and shapes
against the model before anything is read or written. Knows nothing about output files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamavid.config import ModelConfig
from llamavid.errors import CheckpointError
from llamavid.model.checkpoint import Stored
from llamavid.model.dimensions import clip_preprocessing, model_config, preprocessing_from_file
from llamavid.model.llamavid import LlamaVid
from llamavid.model.tensor_files import read_json
from llamavid.tokenizer import LanguageTokenizer, QuestionTokenizer
from llamavid.train.fresh_weights import fresh_compressor, fresh_for_bert, word_row
from llamavid.train.published_weights import Published, adapters, bert, eva, instruct_blip, llama
from llamavid.train.start_checks import check_config, check_telling, check_tokenizers, check_weights
from llamavid.train.start_sources import Kind, Sources, check_choice, start_settings

Weight = Stored | Tensor

_WORDS = "text_decoder.word_embeddings.weight"
_EMBEDDINGS = "language.model.embed_tokens.weight"
_INITIALIZER_RANGE = 0.02  # BERT's, when its config.json does not say


@dataclass(frozen=True)
class Start:
    """A whole model's weights, not yet read.

    Args:
        settings: what config.json says.
        weights: by our names, all but the tower's, which stays in its file.
        fresh: our names of those that no file held.
        dropped, unexpected: stored names: known and not needed; known to nobody.
    """

    config: ModelConfig
    settings: Mapping[str, Any]
    weights: Mapping[str, Weight]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    unexpected: tuple[str, ...]


def starting_weights(sources: Sources, kind: Kind, *, seed: int = 0) -> Start:
    """Everything a start needs.

    Raises:
        CheckpointError: a file is missing, damaged, unsafe, or its tensors are not those of the model.
        UsageError: the sources do not go with the kind, or a tokenizer cannot be read.
    """
    # 1) what is published
    check_choice(sources, kind)
    settings = start_settings(sources, kind)
    pieces = LanguageTokenizer(sources.language / "tokenizer.model")
    words = QuestionTokenizer(sources.vocabulary)
    given = _given(sources, kind)
    check_telling(given, kind)
    weights: dict[str, Weight] = {name: stored for one in given for name, stored in one.stored.items()}
    if settings["tie_word_embeddings"]:  # written out: a release has both
        weights.setdefault("language.lm_head.weight", _found(given, _EMBEDDINGS))
        settings["tie_word_embeddings"] = False

    # 2) what is fresh
    fresh = {} if sources.adapters else _fresh(given, sources, kind, seed)
    weights |= fresh
    if not sources.adapters and kind.text_layers:
        weights[_WORDS] = _with_dec(value(_found(given, _WORDS)), sources, seed)

    # 3) the model that they make
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    config = _config(settings, shapes, sources)
    check_config(config, sources, kind)
    check_tokenizers(config, sources, pieces, words)
    wanted = _model_shapes(config, pieces, words)
    for one in given:
        check_weights(one, shapes, wanted)
    surplus = [stored.name for one in given for name, stored in one.stored.items() if name not in wanted]
    return Start(
        config=config,
        settings=settings | {"mm_hidden_size": config.vision.width, "num_query": config.text_decoder.queries},
        weights={name: weights[name] for name in wanted if not name.startswith("vision.")},
        fresh=tuple(fresh),
        dropped=tuple(name for one in given for name in one.dropped),
        unexpected=tuple(name for one in given for name in one.unexpected) + tuple(surplus),
    )


def value(weight: Weight) -> Tensor:
    """The tensor in its stored dtype. Raises `CheckpointError` for a quantized one."""
    if isinstance(weight, Tensor):
        return weight
    tensor = weight.source.read(weight.name)
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{weight.name} has dtype {str(tensor.dtype).removeprefix('torch.')}",
            expected="floating-point weights",
            next_step="Start from the published weights: quantized ones are not read.",
        )
    return tensor


def _given(sources: Sources, kind: Kind) -> list[Published]:
    given = [llama(sources.language), eva(sources.vision_tower)]
    if sources.adapters:
        given.append(adapters(sources.adapters, text_layers=kind.text_layers))
    elif sources.text_decoder:
        given.append(instruct_blip(sources.text_decoder))
    else:
        assert kind.text_layers
        given.append(bert(sources.text_file, layers=kind.text_layers))
    return given


def _fresh(given: Sequence[Published], sources: Sources, kind: Kind, seed: int) -> dict[str, Tensor]:
    """Note [What is fresh] in `fresh_weights`."""
    width = _found(given, "vision.cls_token").shape[-1]
    text_width = _found(given, _WORDS).shape[-1]
    hidden = _found(given, _EMBEDDINGS).shape[-1]
    depth = kind.projector_depth
    made = fresh_compressor(width=width, hidden=hidden, text_width=text_width, depth=depth, seed=seed)
    if kind.text_layers:
        std = _initializer_range(sources)
        layers = kind.text_layers
        made |= fresh_for_bert(width=width, text_width=text_width, layers=layers, std=std, seed=seed)
    return made


def _with_dec(words: Tensor, sources: Sources, seed: int) -> Tensor:
    """BERT's word embeddings [V, H] and one row more."""
    row = word_row(text_width=words.shape[-1], std=_initializer_range(sources), seed=seed)
    return torch.cat([words, row.to(words.dtype)])


def _initializer_range(sources: Sources) -> float:
    file = sources.vocabulary.parent / "config.json"
    std = read_json(file, "BERT's config").get("initializer_range", _INITIALIZER_RANGE)
    if not isinstance(std, float) or not 0 < std < 1:
        raise CheckpointError(f"{file} has initializer_range {std!r}", expected="a number between 0 and 1")
    return std


def _config(
    settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], sources: Sources
) -> ModelConfig:
    processor = sources.image_processor
    if processor.isdecimal():
        preprocessing = clip_preprocessing(settings, int(processor))
    else:
        preprocessing = preprocessing_from_file(settings, Path(processor))
    return model_config(settings, shapes, preprocessing, sources.vocabulary.parent)


def _model_shapes(
    config: ModelConfig, pieces: LanguageTokenizer, words: QuestionTokenizer
) -> dict[str, tuple[int, ...]]:
    """Of every weight, by our names; built without memory."""
    with torch.device("meta"):
        model = LlamaVid(config, pieces, words)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _found(given: Sequence[Published], name: str) -> Stored:
    """One of the telling weights."""
    return next(one.stored[name] for one in given if name in one.stored)
