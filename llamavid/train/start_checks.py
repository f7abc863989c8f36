"""Whether published weights make the model that is wanted: each mistake is one `CheckpointError`.

Takes names, shapes and tokenizers; reads no weight. Each says which file, what it has and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamavid.config import ModelConfig
from llamavid.errors import CheckpointError
from llamavid.tokenizer import LanguageTokenizer, QuestionTokenizer
from llamavid.train.published_weights import Published
from llamavid.train.start_sources import Kind, Sources

Shapes = Mapping[str, tuple[int, ...]]  # by our names

_TELLING = {  # weights that the dimensions are read off, and their ranks
    "language.model.embed_tokens.weight": 2,
    "vision.cls_token": 3,
    "vision.pos_embed": 3,
    "vision.patch_embed.proj.weight": 4,
    "vision.blocks.0.mlp.fc1.weight": 2,
    "text_decoder.word_embeddings.weight": 2,
    "text_decoder.position_embeddings.weight": 2,
    "text_decoder.layers.0.feed_forward.up.weight": 2,
}
_TELLING_Q_FORMER = {"text_decoder.queries": 3, "text_decoder.layers.0.cross_attention.key.weight": 2}


def check_telling(given: Sequence[Published], kind: Kind) -> None:
    """What the dimensions are read off is there."""
    for name, rank in {**_TELLING, **({} if kind.text_layers else _TELLING_Q_FORMER)}.items():
        _check_rank(next(one for one in given if name.startswith(one.parts)), name, rank)


def _check_rank(file: Published, name: str, rank: int) -> None:
    if name not in file.stored:
        raise CheckpointError(
            f"{file.path} has no {file.stored_name(name)}",
            next_step="See whether it is the file that the option asks for.",
        )
    if len(file.stored[name].shape) != rank:
        raise CheckpointError(
            f"{file.path}: {file.stored_name(name)} has shape {list(file.stored[name].shape)}",
            expected=f"{rank} dimensions",
        )


def check_config(config: ModelConfig, sources: Sources, kind: Kind) -> None:
    """What shapes alone would not tell, or not well."""
    decoder = config.text_decoder
    if not decoder.projects_image and decoder.image_width != config.vision.width:
        raise CheckpointError(
            f"{sources.vision_tower} has width {config.vision.width}",
            expected=f"{decoder.image_width}, which the Q-Former of {sources.text_file} reads",
            next_step="Pass the tower that it was trained with: eva_vit_g.pth.",
        )
    if kind.queries not in (None, decoder.queries):
        raise CheckpointError(
            f"{sources.text_file} has {decoder.queries} queries",
            expected=f"{kind.queries}",
            next_step="Leave --queries out to take them as they are.",
        )


def check_tokenizers(
    config: ModelConfig, sources: Sources, pieces: LanguageTokenizer, words: QuestionTokenizer
) -> None:
    """Each has a row for every word, and the text decoder's no other: its last is [DEC]'s."""
    if words.size != config.text_decoder.vocab_size:
        raise CheckpointError(
            f"{sources.vocabulary} has {words.size - 1} words",
            expected=f"{config.text_decoder.vocab_size - 1}: the rows of {sources.text_file}, less [DEC]'s",
            next_step="Pass bert-base-uncased.",
        )
    if pieces.size > config.language.vocab_size:
        raise CheckpointError(
            f"{sources.language / 'tokenizer.model'} has {pieces.size} entries",
            expected=f"at most {config.language.vocab_size}, the rows of the embeddings",
        )


def check_weights(file: Published, shapes: Shapes, wanted: Shapes) -> None:
    """All that this file is asked for is there, as the model wants it.

    Args:
        shapes: of all weights that were found or made.
        wanted: of all that the model has.
    """
    asked = {name: shape for name, shape in wanted.items() if name.startswith(file.parts)}
    missing = [file.stored_name(name) for name in asked if name not in shapes]
    if missing:
        listed = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise CheckpointError(
            f"{file.path} lacks {len(missing)} {'tensor' if len(missing) == 1 else 'tensors'}: {listed}",
            next_step="Download it again, or see whether it is the file that the option asks for.",
        )
    for name, shape in asked.items():
        found = shapes[name]
        if name == "vision.pos_embed":  # resized to the picture when it is read
            found = (found[0], shape[1], found[2])
        if found != shape:
            raise CheckpointError(
                f"{file.path}: {file.stored_name(name)} has shape {list(shapes[name])}",
                expected=f"{list(shape)} from its config and the other weights",
            )
