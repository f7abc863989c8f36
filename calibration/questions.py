"""What is asked about the clips: lines of a text, a data set's questions, or a dozen general ones.

    questions = read_questions(Path("questions.json"))
    asked = questions.about("17.mp4", path="videos/clips/17.mp4", seed=0, count=2)

What enters the text decoder and the language model depends on the question, so that calibration asks several
different ones. A question that a data set asks about a clip is asked about that clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamavid.errors import UsageError
from llamavid.prompt import checked_question

# Of the kinds that people ask: short and long, open and closed, about one thing and about the whole.
GENERAL = (
    "What is happening in the video?",
    "Describe the video in detail, from its beginning to its end.",
    "How many people are there?",
    "What color is the largest object?",
    "Where was this recorded, indoors or outdoors?",
    "What happens first, and what happens last?",
    "Is anything moving from left to right?",
    "What is the person holding?",
    "Summarize it in one sentence.",
    "What text can be read, on signs, on screens or in subtitles?",
    "Why does this happen?",
    "Which objects appear more than once? List them.",
)
LAYOUTS = 'a text, one question a line, or a JSON list of items with "conversations" or "question"'
_PLACEHOLDERS = ("<image>", "<video>")
_SIZE_LIMIT = (
    256 << 20
)  # bytes: LLaVA-Instruct of 665,000 items has 1 GB, its questions do not matter so much


@dataclass(frozen=True)
class Questions:
    """general: about any clip. own: about one, by the path that the data set has for it."""

    general: tuple[str, ...] = GENERAL
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def about(self, clip: str, *, path: str = "", seed: int, count: int) -> tuple[str, ...]:
        """`count` of them, or as many as there are; by chance, which is the clip's name and the seed.

        Args:
            clip: its name, wherever it lies.
            path: where it lies, if that is more; what a data set calls it may be the end of it.
        """
        own = self.own.get(_known_as(path or clip, self.own), ())
        ranked = [*_shuffled(own, clip, seed), *_shuffled(self.general, clip, seed)]
        return tuple(dict.fromkeys(ranked))[:count]


def read_questions(file: Path) -> Questions:
    """A text or JSON file.

    Raises:
        UsageError: it cannot be read, or holds no question.
        PromptError: one is not text.
    """
    text = _text(file)
    if file.suffix.lower() == ".json":
        return _from_json(file, text)
    lines = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    return Questions(_some(lines, file))


def _from_json(file: Path, text: str) -> Questions:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON ({error})", expected=LAYOUTS) from error
    if not isinstance(rows, list):
        raise UsageError(f"{file} is not a list", expected=LAYOUTS)
    own: dict[str, dict[str, None]] = {}
    every: dict[str, None] = {}
    for row in rows:
        said = dict.fromkeys(_asked(row))
        every |= said
        media = row.get("video", row.get("image", row.get("video_name"))) if isinstance(row, dict) else None
        if isinstance(media, str):
            own.setdefault(media, {}).update(said)
    return Questions(_some(tuple(every), file), {media: tuple(said) for media, said in own.items() if said})


def _asked(row: Any) -> list[str]:
    """The human's turns of a LLaVA item, or its `question`; [] for anything else."""
    if not isinstance(row, dict):
        return []
    turns = row.get("conversations")
    if isinstance(turns, list):
        human = (turn for turn in turns if isinstance(turn, dict) and turn.get("from") == "human")
        said = [turn.get("value") for turn in human]
    else:
        said = [row.get("question")]
    return [text for value in said if isinstance(value, str) and (text := _without_placeholder(value))]


def _without_placeholder(text: str) -> str:
    for placeholder in _PLACEHOLDERS:
        text = text.replace(placeholder, "")
    return text.strip()


def _some(questions: tuple[str, ...], file: Path) -> tuple[str, ...]:
    if not questions:
        raise UsageError(f"{file} holds no question", expected=LAYOUTS)
    return tuple(checked_question(question) for question in questions)


def _known_as(clip: str, own: Mapping[str, Any]) -> str:
    """The longest end of a clip's path that the data set knows: it may lie in another folder here."""
    parts = clip.replace("\\", "/").split("/")
    ends = ("/".join(parts[first:]) for first in range(len(parts)))
    stems = (end.rpartition(".")[0] for end in (parts[-1],))
    return next((end for end in (*ends, *stems) if end in own), "")


def _shuffled(questions: tuple[str, ...], clip: str, seed: int) -> list[str]:
    return sorted(questions, key=lambda text: hashlib.sha256(f"{seed} {clip} {text}".encode()).digest())


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _SIZE_LIMIT:
            raise UsageError(f"{file} has {file.stat().st_size} bytes", expected=f"at most {_SIZE_LIMIT}")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})", expected=LAYOUTS) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text", expected=LAYOUTS) from error
