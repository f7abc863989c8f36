"""Files of questions about videos, as data sets come, and files of answers. Knows nothing about a model.

Note [Layouts]
    A file is a JSON list; the fields of its first item say which layout it has.

    LLaVA         {"id", "video" or "image", "conversations": [human, gpt], "kind"?, "unseen_pair"?}
                  A path is relative to the media folder. Answers are a word or a few: they can be scored.
    open-ended    {"video_name", "question", "question_id"}, and a second file of {"question_id", "answer"}:
                  ActivityNet-QA, and MSVD-QA and MSRVTT-QA in Video-ChatGPT's form.
                  {"video_id", "question", "id", "answer"}: the last two as published.
                  A name goes without its extension. A judge decides, elsewhere, which predictions are right.

Note [Answer file]
    JSON Lines. A scored data set's has a header, which tells the bundle, the data and the settings, and then
    {"id", "kind", "question", "expected", "answer", "right", "unseen_pair"?} a line. Predictions for a judge
    are {"id", "question", "answer", "pred"}, "answer" being the right one. Judges read every line, so that
    their header is in a file beside, `NAME.header.json`. Only a run of the same header continues a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from llamavid.errors import UsageError

PLACEHOLDER = "<image>"
NO_KIND = "other"
EXTENSIONS = ("", ".mp4", ".avi", ".mov", ".mkv", ".webm")
PREFIXES = ("", "v_", "video", "vid")  # ActivityNet's v_abc, MSRVTT's video7010, MSVD's vid1451
LAYOUTS = (
    'LLaVA JSON ("conversations"), or a list of "question" with "video_name" or "video_id"; '
    "see llamavid/runtime/qa_layouts.py"
)

Name = str | int
Record = dict[str, Any]  # a line of Note [Answer file]


@dataclass(frozen=True)
class Item:
    """One question about one video or picture. unseen_pair: None where the data set does not say."""

    name: Name
    media: Path
    question: str
    expected: str
    kind: str = NO_KIND
    unseen_pair: bool | None = None


@dataclass(frozen=True)
class Broken:
    """An item that gets no answer, and why."""

    name: Name
    reason: str


@dataclass(frozen=True)
class DataSet:
    """digest: sha256 of what was read. scored: an answer is right or wrong; else a judge has to say."""

    path: Path
    digest: str
    scored: bool
    items: tuple[Item, ...]
    broken: tuple[Broken, ...]


def read_data_set(
    file: Path, *, media: Path | None = None, answers: Path | None = None, limit: int | None = None
) -> DataSet:
    """The questions of a file; Note [Layouts]. Whether a video can be read is seen when it is watched.

    Args:
        media: the folder of the videos; the file's own when left out.
        answers: the right answers of an open-ended layout that keeps them apart.
        limit: the first so many items alone.

    Raises:
        UsageError: a file is of no known layout, or `answers` is missing or not needed.
    """
    digest, folder = hashlib.sha256(), media or file.parent
    rows = _rows(file, digest)
    scored = "conversations" in rows[0]
    if not scored and not ("question" in rows[0] and {"video_name", "video_id"} & rows[0].keys()):
        raise UsageError(
            f"the first item of {file} has {', '.join(rows[0]) or 'no fields'}", expected=LAYOUTS
        )
    _check_answers(file, rows[0], scored, answers)
    right = enumerate(_rows(answers, digest) if answers else [])
    gold = {_name(row, index): row.get("answer") for index, row in right}
    items: dict[Name, Item] = {}
    broken: list[Broken] = []
    for index, row in enumerate(rows[:limit]):
        name = _name(row, index)
        try:
            if name in items:
                raise ValueError("its id is that of an earlier item")
            item = _llava_item(row, folder) if scored else _open_item(row, gold.get(name), folder)
            items[name] = replace(item, name=name)
        except ValueError as error:
            broken.append(Broken(name, str(error)))
    return DataSet(file, digest.hexdigest(), scored, tuple(items.values()), tuple(broken))


def _rows(file: Path, digest: Any) -> list[dict[str, Any]]:
    """A JSON list of objects; its bytes go into `digest`."""
    try:
        content = file.read_bytes()
        rows = json.loads(content)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error})", expected="a JSON list of items") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{file} is not a list of items", expected=LAYOUTS)
    digest.update(content)
    return rows


def _check_answers(file: Path, first: dict[str, Any], scored: bool, answers: Path | None) -> None:
    inside = scored or "answer" in first
    if inside and answers:
        raise UsageError(f"{file} holds its answers itself", next_step="Leave --answers out.")
    if not inside and not answers:
        raise UsageError(f"{file} holds no answers", next_step="Name the file that does: --answers FILE.")


def _name(row: dict[str, Any], index: int) -> Name:
    name = row.get("question_id", row.get("id", index))
    return name if isinstance(name, (str, int)) else str(name)


def _llava_item(row: dict[str, Any], folder: Path) -> Item:
    """Raises `ValueError` in words for the user, as the next two do."""
    path = row.get("video", row.get("image"))
    if not isinstance(path, str):
        raise ValueError('it names no "video" and no "image"')
    said = row.get("conversations")
    turns = [part for part in said if isinstance(part, dict)] if isinstance(said, list) else []
    if [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise ValueError("its conversation is not one question of a human and one answer of gpt")
    question, expected = (_text(turn, "value").replace(PLACEHOLDER, "").strip() for turn in turns)
    if not question or not expected:
        raise ValueError("its question or its answer is empty")
    unseen_pair = bool(row["unseen_pair"]) if "unseen_pair" in row else None
    return Item("", folder / path, question, expected, str(row.get("kind", NO_KIND)), unseen_pair)


def _open_item(row: dict[str, Any], gold: Any, folder: Path) -> Item:
    expected = row.get("answer", gold)
    if expected is None:
        raise ValueError("it has no right answer")
    video = row.get("video_name", row.get("video_id"))
    if not isinstance(video, (str, int)) or not str(video):
        raise ValueError("it names no video")
    return Item("", _video_file(folder, str(video)), _text(row, "question"), str(expected))


def _text(row: dict[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str):
        raise ValueError(f'its "{field}" is not a text')
    return str(row[field])


def _video_file(folder: Path, name: str) -> Path:
    """The first usual name that is there; the plain one where none is, to be missed by that name."""
    usual = [folder / f"{prefix}{name}{extension}" for prefix in PREFIXES for extension in EXTENSIONS]
    return next((path for path in usual if path.is_file()), folder / name)


# Answers.


class AnswerFile:
    """Note [Answer file]: the records that are there, and adding to them. Without a path, in memory alone."""

    def __init__(self, path: Path | None, header: Record, *, header_beside: bool = False) -> None:
        """Opens a new or empty file, or one that a run of the same header began. Raises `UsageError`."""
        self.records: dict[Name, Record] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        header_path = path.with_name(f"{path.name}.header.json") if header_beside else path
        if path.exists() and path.stat().st_size:
            self._read(path, header_path, header)
        else:
            header_path.write_bytes(_line(header))
        self._file = path.open("ab")

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file:
            self._file.close()

    def add(self, record: Record) -> None:
        self.records[record["id"]] = record
        if self._file:
            self._file.write(_line(record))
            self._file.flush()

    def _read(self, path: Path, header_path: Path, header: Record) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            told = json.loads((header_path.read_bytes().splitlines() or [b""])[0])
            different = [part for part in header if told[part] != header[part]]
            lines = whole.splitlines()[1 if header_path == path else 0 :]
            self.records = {record["id"]: record for record in map(json.loads, lines)}
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise _not_ours(path, "is no file of answers that can be continued") from error
        if different and self.records:
            raise _not_ours(path, f"is of another run: its {' and '.join(different)} differ")
        if different:  # that run gave no answer: nothing is lost
            path.write_bytes(b"")
            header_path.write_bytes(_line(header))
        elif len(whole) < len(
            content
        ):  # the power failed in the middle of a line: its question is asked again
            os.truncate(path, len(whole))


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _not_ours(path: Path, problem: str) -> UsageError:
    return UsageError(f"{path} {problem}", next_step="Name another file, or remove this one.")
