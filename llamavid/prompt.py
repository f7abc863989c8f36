"""From a question to the text the language model reads.

A prompt is a list of parts: pieces of text, `SLOT` where frame tokens go, and
`END` where a past answer ended. Users' words are only ever text: a question
that spells `<image>` or `</s>` stays a question.

Knows templates; knows nothing about token ids (`llamavid.tokenizer`).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from llamavid.errors import PromptError, UsageError


class Mark(enum.Enum):
    """What a prompt holds besides text."""

    SLOT = "frame tokens go here"
    END = "an answer ended here"


SLOT, END = Mark.SLOT, Mark.END
Part = str | Mark


@dataclass(frozen=True)
class Template:
    """A Vicuna v1.5 conversation: `SYSTEM USER: ... ASSISTANT: ...</s>USER: ...`."""

    system: str
    user: str = "USER"
    assistant: str = "ASSISTANT"


_USER_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HUMAN_SYSTEM = _USER_SYSTEM.replace("curious user", "curious human").replace("the user's", "the human's")

# The names of the reference: training, evaluation and movies, its command line.
TEMPLATES = {
    "imgsp_v1": Template(_USER_SYSTEM),
    "vicuna_v1": Template(_USER_SYSTEM),
    "llava_v1": Template(_HUMAN_SYSTEM),
}

_MOVIE_OPENING = "Below is a movie. Memorize the content and answer my question after watching this movie."
_MOVIE_CLOSING = "Now the movie end.\n"


@dataclass(frozen=True)
class Turn:
    """A question that was answered."""

    question: str
    answer: str


def find_template(name: str) -> Template:
    """Raises `UsageError` for a name that is not a template's."""
    if name not in TEMPLATES:
        raise UsageError(f"template {name!r} does not exist", expected=" or ".join(TEMPLATES))
    return TEMPLATES[name]


def checked_question(question: str) -> str:
    """The question without white space around it. Raises `PromptError` when none is left, or no text."""
    try:
        question.encode()
    except UnicodeEncodeError as error:  # bytes of another encoding, as the shell passed them
        raise PromptError(
            "the question is not UTF-8 text", next_step="Check the terminal's encoding."
        ) from error
    if not question.strip():
        raise PromptError(
            "the question is empty", expected="some words", next_step="Ask something about the video."
        )
    return question.strip()


def conversation(question: str, *, template: str = "vicuna_v1", history: Sequence[Turn] = ()) -> list[Part]:
    """The parts of a prompt about one video: one `SLOT`, in the first question."""
    form = find_template(template)
    parts: list[Part] = [f"{form.system} {form.user}: ", SLOT]
    lead = "\n"
    for turn in history:
        parts += [f"{lead}{turn.question} {form.assistant}: {turn.answer}", END]
        lead = f"{form.user}: "
    parts.append(f"{lead}{checked_question(question)} {form.assistant}:")
    return parts


def movie(
    question: str, subtitles: Sequence[str], *, tokens_per_frame: int, template: str = "vicuna_v1"
) -> list[Part]:
    """The parts of a long-video prompt: each frame's rows, then what was said until the next frame.

    Args:
        subtitles: one string for each frame, empty where nothing was said.
        tokens_per_frame: rows a frame has; each gets a `SLOT` of its own.
    """
    form = find_template(template)
    parts: list[Part] = [f"{form.system} {form.user}: {_MOVIE_OPENING}"]
    for said in subtitles:
        parts += [*[SLOT] * tokens_per_frame, said]
    closing = f"{_MOVIE_CLOSING}{checked_question(question)} {form.assistant}:"
    return _joined([*parts, closing])


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring texts become one, as they are tokenized together; empty ones go."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return joined
