"""LLaVA JSON to training examples: which frames, which token ids, which of them are learned.

A file is a list of `{"id", "video" or "image" or neither, "conversations": [{"from": "human" | "gpt",
"value"}, ...]}`. A `video` that ends in `.safetensors` is a movie: features that `llamavid features` stored,
with subtitles. Broken items are named and counted, never replaced by others.

Note [What is learned]
    Answers and the `</s>` after them; nothing else. A label is the id itself, or IGNORED.
"""

from __future__ import annotations

import enum
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.errors import UsageError
from llamavid.prompt import END, SLOT, Part, Turn, find_template, movie
from llamavid.tokenizer import SLOT_ID, LanguageTokenizer
from llamavid.train.movies import MOVIE_SUFFIX, movie_subtitles
from llamavid.train.stages import Dialogue

IGNORED = -100  # PyTorch's cross-entropy skips it
_PLACEHOLDER = "<image>"
_TEMPLATE = "imgsp_v1"


class Media(enum.Enum):
    VIDEO = "video"
    MOVIE = "movie"
    PICTURE = "image"
    TEXT = "text"


@dataclass(frozen=True)
class Sample:
    """One item of a data set."""

    name: str
    media: Media
    path: Path | None  # None for text
    turns: tuple[Turn, ...]
    subtitles: tuple[str, ...] = ()  # of a movie: what is said after each frame


@dataclass(frozen=True)
class Example:
    """A sample as the language model sees it.

    ids, labels: int64 [T]; `SLOT_ID` in ids where frame tokens go: all those of one prompt, or, in a movie,
        one.
    prompts: what the text decoder reads beside every frame, once for each.
    """

    sample: Sample
    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    prompts: tuple[str, ...]

    @property
    def learned_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())

    def length(self, rows: int) -> int:
        """Tokens of the sequence, when frame tokens of all prompts are `rows` together."""
        return int((self.ids != SLOT_ID).sum()) + rows


@dataclass(frozen=True)
class Broken:
    """An item that cannot be used, and why."""

    name: str
    reason: str


def read_samples(file: Path, media_folder: Path | None = None) -> tuple[list[Sample], list[Broken]]:
    """The samples of a LLaVA JSON and the items that are none.

    Args:
        media_folder: what paths are relative to; the file's own folder when left out.

    Raises:
        UsageError: the file is not a list of items.
    """
    try:
        items = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error})", expected="LLaVA JSON") from error
    if not isinstance(items, list) or not items:
        raise UsageError(f"{file} is not a list of items", expected="LLaVA JSON")
    samples: list[Sample] = []
    broken: list[Broken] = []
    for index, item in enumerate(items):
        try:
            samples.append(_sample(item, index, media_folder or file.parent))
        except ValueError as error:
            broken.append(Broken(_name(item, index), str(error)))
    return samples, broken


def _name(item: Any, index: int) -> str:
    return str(item.get("id", index)) if isinstance(item, dict) else str(index)


def _sample(item: Any, index: int, folder: Path) -> Sample:
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise ValueError("it has no conversations")
    media = Media.VIDEO if "video" in item else Media.PICTURE if "image" in item else Media.TEXT
    path = None if media is Media.TEXT else folder / str(item[media.value])
    if path is not None and not path.is_file():
        raise ValueError(f"{path} is missing")
    turns = _turns(item["conversations"])
    if media is Media.VIDEO and path is not None and path.suffix == MOVIE_SUFFIX:
        media = Media.MOVIE
    if path is not None and not any(_PLACEHOLDER in str(said.get("value")) for said in item["conversations"]):
        raise ValueError(f"it has a {media.value} and no {_PLACEHOLDER}")
    subtitles = movie_subtitles(path) if media is Media.MOVIE and path is not None else ()
    return Sample(_name(item, index), media, path, turns, subtitles)


def _turns(said: list[Any]) -> tuple[Turn, ...]:
    roles = [str(part.get("from")) if isinstance(part, dict) else "?" for part in said]
    if roles != ["human", "gpt"] * (len(roles) // 2) or not roles:
        raise ValueError(f"its roles are {', '.join(roles) or 'none'}; human and gpt take turns")
    words = [str(part.get("value", "")).replace(_PLACEHOLDER, "").strip() for part in said]
    if not all(words[1::2]):
        raise ValueError("an answer is empty")
    return tuple(Turn(question, answer) for question, answer in zip(words[::2], words[1::2], strict=True))


def example(
    sample: Sample,
    dialogue: Dialogue,
    tokenizer: LanguageTokenizer,
    *,
    max_tokens: int,
    tokens_per_frame: int,
    chance: random.Random,
) -> Example:
    """What the language model sees of a sample.

    Args:
        max_tokens: of a movie's whole sequence; of the text of any other, whose frames nobody counted yet.
        tokens_per_frame: 1+n, which a movie's sequence repeats for each frame.
        chance: puts the placeholder before or after the question of a later turn, as the reference does.

    Raises:
        ValueError: it is longer than `max_tokens`.
    """
    if sample.media is Media.MOVIE:
        pieces = _movie(sample, tokens_per_frame)
        prompts: tuple[str, ...] = (sample.turns[0].question,)
    elif dialogue is Dialogue.PLAIN_GUIDED:
        pieces = _plain(sample)
        prompts = (sample.turns[0].question,)
    else:
        pieces = _conversation(sample, chance)
        prompts = tuple(turn.question for turn in sample.turns)
    if sample.media is Media.TEXT:
        pieces, prompts = [piece for piece in pieces if piece[0] is not SLOT], ()  # a caption's
    ids, labels = _labelled(pieces, tokenizer)
    if len(ids) > max_tokens:
        what = "sequence" if sample.media is Media.MOVIE else "text"
        raise ValueError(f"its {what} has {len(ids)} tokens, more than {max_tokens}")
    return Example(sample, ids, labels, prompts)


Piece = tuple[Part, str]  # what is read, and what of it is learned: "" or the end of the text


def _plain(sample: Sample) -> list[Piece]:
    """`<image>caption\\n`: the instruction is the text decoder's alone."""
    caption = sample.turns[0].answer + "\n"
    return [(SLOT, ""), (caption, caption)]


def _movie(sample: Sample, tokens_per_frame: int) -> list[Piece]:
    """The prompt that is asked about a movie, and its answer; later turns see no frame of their own."""
    form = find_template(_TEMPLATE)
    first, *later = sample.turns
    if not first.question:
        raise ValueError("a question is empty")
    asked = movie(first.question, sample.subtitles, tokens_per_frame=tokens_per_frame, template=_TEMPLATE)
    pieces: list[Piece] = [(part, "") for part in asked[:-1]]
    lead = asked[-1]
    for turn in (first, *later):
        if turn is not first:
            lead = f"{form.user}: {turn.question} {form.assistant}:"
        pieces += [(f"{lead} {turn.answer}", f" {turn.answer}"), (END, "")]
    return pieces


def _conversation(sample: Sample, chance: random.Random) -> list[Piece]:
    form = find_template(_TEMPLATE)
    pieces: list[Piece] = [(f"{form.system} ", "")]
    for index, turn in enumerate(sample.turns):
        lead = f"{form.user}: "
        if sample.media is Media.TEXT:
            before: list[Part] = [f"{lead}{turn.question}"]
        elif index == 0 or chance.random() < 0.5:
            before = [lead, SLOT, f"\n{turn.question}"]
        else:
            before = [f"{lead}{turn.question}\n", SLOT, ""]
        answer = f" {turn.answer}"
        pieces += [(part, "") for part in before[:-1]]
        pieces += [(f"{before[-1]} {form.assistant}:{answer}", answer), (END, "")]
    return _joined(pieces)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Texts that touch are tokenized together, as in the reference."""
    joined: list[Piece] = []
    for part, learned in pieces:
        last = joined[-1] if joined else (SLOT, "")
        if isinstance(part, str) and isinstance(last[0], str) and not last[1]:
            joined[-1] = (last[0] + part, learned)
        else:
            joined.append((part, learned))
    return joined


def _labelled(
    pieces: Iterable[Piece], tokenizer: LanguageTokenizer
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids and labels; Note [What is learned]."""
    ids: list[int] = [tokenizer.bos_id]
    learned: list[bool] = [False]
    for part, answer in pieces:
        these = tokenizer.ids([part])[1:].tolist()
        kept = len(these)
        if isinstance(part, str):
            kept = len(tokenizer.ids([part.removesuffix(answer)])) - 1 if answer != part else 0
            kept = kept if answer else len(these)
        elif part is END:
            kept = 0
        ids += these
        learned += [index >= kept for index in range(len(these))]
    all_ids = np.asarray(ids, np.int64)
    return all_ids, np.where(learned, all_ids, IGNORED)
