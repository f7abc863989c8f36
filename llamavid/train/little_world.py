"""The little world: clips of colored shapes that appear, move, change and leave, and what is said about them.

    python -m llamavid.train.little_world --split train --seed 0 --clips 1000 --stills 1000 -o DIR

It is what a tiny model is trained on in an hour or two, and held to. `DIR` gets

    clips/, stills/     H.264 (128 x 128, 8 a second), PNG
    captions.json       stage 1: a sentence about each (`kind` is "caption") and each actor ("circle-caption")
    instructions.json   stage 2: all questions about one as the turns of a conversation; `kind` is "turns"
    questions.json      evaluation: the same questions, one an item; `kind` is a value of `Kind`

in the form that `world_files` shows. The same split and seed give the same files; another split shares no
scene with it. Pairs of color and shape in UNSEEN_PAIRS occur in the heldout split only; an item about one
has `unseen_pair` set. Without files: `scenes`, `frames` and `questions`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

from llamavid.console import Progress, remark
from llamavid.errors import UsageError
from llamavid.train.parser import Parser, run_command
from llamavid.train.world_casting import Form, scenes
from llamavid.train.world_drawing import frames
from llamavid.train.world_files import Entry, Item, write_scene
from llamavid.train.world_questions import Kind, questions
from llamavid.train.world_scene import SPLITS, Scene, Split

__all__ = ["frames", "questions", "scenes", "write_world"]

SCENES_AT_ONCE = 8  # what a process takes on; less would be spent on the way


@dataclass(frozen=True)
class Answers:
    """The questions of one kind. answers: how often each is the right one, the most frequent first."""

    questions: int
    unseen_pair: int
    answers: dict[str, int]


@dataclass(frozen=True)
class Summary:
    folder: str
    split: Split
    seed: int
    clips: int
    stills: int
    longs: int
    seconds: int
    media_bytes: int
    kinds: dict[str, Answers]

    @property
    def scenes(self) -> int:
        return self.clips + self.stills + self.longs


def write_world(
    folder: Path,
    split: Split,
    *,
    seed: int = 0,
    clips: int,
    stills: int = 0,
    longs: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write a data set into `folder`, which is new or empty.

    It is written beside, as `folder.partial`, and renamed when complete. `progress` is called with the scenes
    drawn and the scenes in all. More `workers` are more processes; the files are the same.

    Raises:
        UsageError: the folder is in use, or a number cannot be.
        OSError: the disk is full, or the folder cannot be made.
    """
    total = clips + stills + longs
    if min(clips, stills, longs) < 0 or total == 0 or workers < 1:
        given = f"{clips} clips, {stills} stills, {longs} long clips, {workers} workers"
        raise UsageError(given, expected="at least one clip or still, and one worker")
    wanted: dict[Form, int] = {"clip": clips, "still": stills, "long": longs}
    drawn = chain.from_iterable(scenes(split, seed, count, form=form) for form, count in wanted.items())
    with _new_folder(folder.resolve()) as partial_folder:
        entries = []
        for entry in _written(drawn, partial_folder, workers):
            entries.append(entry)
            if progress:
                progress(len(entries), total)
        captions = [item for entry in entries for item in entry.captions]
        asked = [item for entry in entries for item in entry.questions]
        _write_json(partial_folder / "captions.json", captions)
        _write_json(partial_folder / "instructions.json", [entry.turns for entry in entries])
        _write_json(partial_folder / "questions.json", asked)
        media_bytes = sum(path.stat().st_size for path in partial_folder.glob("*/*"))
    seconds = sum(entry.turns["seconds"] for entry in entries)
    return Summary(str(folder), split, seed, clips, stills, longs, seconds, media_bytes, _by_kind(asked))


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` if all goes well and disappears otherwise."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", expected="a new or empty folder")
    beside = folder.with_name(folder.name + ".partial")
    try:
        beside.mkdir(parents=True)
    except FileExistsError:
        next_step = "Remove it, unless another run is still writing it."
        raise UsageError(f"{beside} is there from a run that did not finish", next_step=next_step) from None
    try:
        for media in ("clips", "stills"):
            (beside / media).mkdir()
        yield beside
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # renamed by now, if all went well


def _written(drawn: Iterable[Scene], folder: Path, workers: int) -> Iterator[Entry]:
    """In the order of the scenes."""
    write = partial(write_scene, folder=folder)
    if workers == 1:
        yield from map(write, drawn)
        return
    with get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(write, drawn, chunksize=SCENES_AT_ONCE)


def _write_json(path: Path, items: list[Item]) -> None:
    path.write_text(json.dumps(items, indent=1) + "\n", encoding="utf-8")


def _by_kind(items: list[Item]) -> dict[str, Answers]:
    kinds = {kind.value: [item for item in items if item["kind"] == kind.value] for kind in Kind}
    return {
        kind: Answers(
            len(asked),
            sum(item["unseen_pair"] for item in asked),
            dict(Counter(item["conversations"][1]["value"] for item in asked).most_common()),
        )
        for kind, asked in kinds.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    with Progress() as bar:
        summary = write_world(
            options.output,
            options.split,
            seed=options.seed,
            clips=options.clips,
            stills=options.stills,
            longs=options.longs,
            workers=options.workers,
            progress=lambda done, total: bar.update("drawing", done, total),
        )
    seconds = time.perf_counter() - start
    remark(f"{seconds:.1f} s, {summary.scenes / seconds:.1f} clips and stills a second")
    print(json.dumps(asdict(summary)) if options.json else _table(summary))


def _table(summary: Summary) -> str:
    lines = [f"{'kind':10}{'questions':>10}{'unseen pair':>13}  most frequent answer"]
    for kind, asked in summary.kinds.items():
        answer, times = next(iter(asked.answers.items()), ("", 0))
        share = f"{answer} ({times / asked.questions:.0%})" if times else ""
        lines.append(f"{kind:10}{asked.questions:10}{asked.unseen_pair:13}  {share}".rstrip())
    lines.append(
        f"{summary.folder}: {summary.clips} clips of {summary.seconds} s in all, "
        f"{summary.stills} stills, {summary.longs} long clips, {summary.media_bytes:,} bytes."
    )
    return "\n".join(lines)


def _parser() -> Parser:
    made = Parser(
        prog="python -m llamavid.train.little_world",
        description="Draw clips and pictures of colored shapes, with captions and questions as LLaVA JSON.",
    )
    made.add_argument("--split", choices=SPLITS, required=True)
    made.add_argument("--clips", type=int, default=0, metavar="K")
    made.add_argument("--stills", type=int, default=0, metavar="K")
    made.add_argument("--longs", type=int, default=0, metavar="K", help="clips of 2 to 4 minutes")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="new or empty folder")
    made.add_argument("--workers", type=int, default=cpu_count() or 1, metavar="N", help="processes")
    made.add_argument("--json", action="store_true", help="print the summary as one JSON document")
    return made


if __name__ == "__main__":
    sys.exit(main())
