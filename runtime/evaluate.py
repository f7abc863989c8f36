"""How often a bundle is right about a data set: every question asked, every answer kept, accuracy by kind.

    with VideoSession.open("bundle") as session:
        outcome = evaluate(session, read_data_set(Path("questions.json")), output=Path("answers.jsonl"))
        print(scores(outcome.records).total)

A video is watched once for all of its questions. An answer is on disk as soon as it is given, and a run that
was interrupted continues where it ended.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from llamavid.errors import PromptError, SourceError
from llamavid.prompt import find_template
from llamavid.runtime.features.watched import Watched
from llamavid.runtime.qa_layouts import AnswerFile, Broken, DataSet, Item, Record
from llamavid.runtime.session import Array, VideoSession
from llamavid.runtime.video.frames import FrameTime
from llamavid.runtime.video.sources import open_source

Z_95 = 1.959963984540054  # of the normal distribution, two-sided 95 %
MID_GREY = 128
MOST_BROKEN = 0.01  # share of a data set that may be broken

_ARTICLES = re.compile(r"^((a|an|the)\s+)+")
_FINAL = string.whitespace + ".,;:!?"


@dataclass(frozen=True)
class Settings:
    """fps: frames a second to look at. template: the bundle's own when None. blind: see `watch_blind`."""

    fps: float = 1.0
    max_new_tokens: int = 16
    template: str | None = None
    blind: bool = False


@dataclass(frozen=True)
class Outcome:
    """records: the answers, in the data set's order. broken: the items that have none."""

    records: tuple[Record, ...]
    broken: tuple[Broken, ...]

    @property
    def too_broken(self) -> bool:
        return len(self.broken) > MOST_BROKEN * (len(self.records) + len(self.broken))


@dataclass(frozen=True)
class Score:
    """low, high: the 95 % confidence interval of the accuracy."""

    questions: int
    right: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """unseen_pairs: those of the total that have `unseen_pair` set; None where there are none."""

    kinds: dict[str, Score]
    total: Score
    unseen_pairs: Score | None


def evaluate(
    session: VideoSession,
    data: DataSet,
    settings: Settings | None = None,
    *,
    output: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_broken: Callable[[Broken], None] = lambda broken: None,
) -> Outcome:
    """Asks every question of a data set, greedily, but those that `output` has the answer of.

    Args:
        output: where answers are kept; Note [Answer file].
        on_progress: called with the items dealt with and their number.
        on_broken: called with each item that gets no answer.

    Raises:
        UsageError: a setting cannot be, or `output` belongs to another run.
        OSError: `output` cannot be written.
    """
    settings = settings or Settings()
    template = settings.template or session.bundle.manifest.template
    find_template(template)  # refused before anything is written
    settings = replace(settings, template=template)
    header = {"bundle": session.bundle.digest, "data": data.digest, "settings": asdict(settings)}
    broken: list[Broken] = []
    with AnswerFile(output, header, header_beside=not data.scored) as answers:
        pending = [item for item in data.items if item.name not in answers.records]
        done, total = len(data.items) - len(pending), len(data.items) + len(data.broken)
        for result in chain(data.broken, _answers(session, pending, settings)):
            if isinstance(result, Broken):
                broken.append(result)
                on_broken(result)
            else:
                answers.add(_record(*result, scored=data.scored))
            done += 1
            on_progress(done, total)
        records = [answers.records[item.name] for item in data.items if item.name in answers.records]
    return Outcome(tuple(records), tuple(broken))


def _answers(
    session: VideoSession, items: Iterable[Item], settings: Settings
) -> Iterator[tuple[Item, str] | Broken]:
    """Video by video, so that each is watched once."""
    by_media: dict[Path, list[Item]] = {}
    for item in items:
        by_media.setdefault(item.media, []).append(item)
    grey = grey_features(session) if settings.blind and by_media else None
    for media, about in by_media.items():
        try:
            if grey is None:
                session.watch(media, fps=settings.fps)
            else:
                watch_blind(session, media, grey, fps=settings.fps)
        except (SourceError, PromptError) as error:
            yield from (Broken(item.name, str(error)) for item in about)
            continue
        for item in about:
            try:
                answer = session.ask(
                    item.question, max_new_tokens=settings.max_new_tokens, template=settings.template
                )
            except PromptError as error:
                yield Broken(item.name, str(error))
            else:
                yield item, answer.text


def grey_features(session: VideoSession) -> Array:
    """[1, R, C], the features of a mid-grey picture."""
    side = session.config.preprocessing.image_size
    with TemporaryDirectory() as folder:
        picture = Path(folder, "grey.png")
        Image.new("RGB", (side, side), (MID_GREY,) * 3).save(picture)
        return session.watch(picture).features()


def watch_blind(session: VideoSession, media: Path, grey: Array, *, fps: float) -> Watched:
    """Watches a video of which every frame is `grey`: what a model says that sees nothing.

    Raises:
        SourceError: the file cannot be read; its frames are counted.
    """
    with open_source(media, fps=fps) as source:
        times = [FrameTime(frame.index, frame.pts_seconds) for frame in source.frames()]
    return session.adopt(np.repeat(grey, len(times), axis=0), times)


# Answers, right and wrong.


def is_right(answer: str, expected: str) -> bool:
    return plain(answer) == plain(expected)


def plain(answer: str) -> str:
    """In lower case, without leading articles, final punctuation and white space around."""
    return _ARTICLES.sub("", answer.lower().strip().rstrip(_FINAL))


def _record(item: Item, answer: str, *, scored: bool) -> Record:
    if not scored:
        return {"id": item.name, "question": item.question, "answer": item.expected, "pred": answer}
    record: Record = {"id": item.name, "kind": item.kind, "question": item.question}
    record |= {"expected": item.expected, "answer": answer, "right": is_right(answer, item.expected)}
    return record if item.unseen_pair is None else record | {"unseen_pair": item.unseen_pair}


def scores(records: Sequence[Record]) -> Scores:
    """Of a scored data set's answers; kinds in the order of the data."""
    by_kind: dict[str, list[bool]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record["right"])
    unseen = [record["right"] for record in records if record.get("unseen_pair")]
    return Scores(
        {kind: score(rights) for kind, rights in by_kind.items()},
        score([record["right"] for record in records]),
        score(unseen) if unseen else None,
    )


def score(rights: Sequence[bool]) -> Score:
    questions, right = len(rights), sum(rights)
    return Score(questions, right, right / max(1, questions), *wilson_interval(right, questions))


def wilson_interval(right: int, questions: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927), which stays within 0 and 1."""
    if questions == 0:
        return 0.0, 1.0
    share, z2 = right / questions, Z_95**2
    centre = share + z2 / (2 * questions)
    reach = Z_95 * sqrt(share * (1 - share) / questions + z2 / (4 * questions**2))
    low, high = ((centre + sign * reach) / (1 + z2 / questions) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)
