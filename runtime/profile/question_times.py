"""The first and the second question about one video, as a user asks them: through a session.

Loading the graphs is taken out: it is once a session, not once a video.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llamavid.runtime.profile.document import QuestionFigures
from llamavid.runtime.profile.figures import figure, rounds_within
from llamavid.runtime.session import VideoSession
from llamavid.runtime.video.sources import open_source

_WATCHED = ("decode_video", "pixels", "vision", "content")  # stages of the first question alone


class _Round(NamedTuple):
    """Milliseconds."""

    watch: float
    asked: tuple[float, float]
    first_token: tuple[float, float]
    stages: tuple[dict[str, float], dict[str, float]]
    frames: int
    prompt_tokens: int


def question_figures(
    session: VideoSession,
    path: Path,
    questions: Sequence[str],
    *,
    frames: int,
    fps: float,
    new_tokens: int,
    seconds: float,
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> QuestionFigures:
    """Watches the file and asks two questions, again and again.

    Args:
        frames: a longer video is looked at more seldom, so that it has about so many.

    Raises:
        as `VideoSession.watch` and `ask` do.
    """
    fps = seldom_enough(path, frames, fps)

    def round_() -> _Round:
        since = _Stopwatch(session)
        watched = len(session.watch(path, fps=fps).frames)
        watch = since.milliseconds()
        first, second = (_asked(session, question, new_tokens) for question in questions[:2])
        stages = (first[2], {k: v for k, v in second[2].items() if k not in _WATCHED})
        return _Round(watch, (first[0], second[0]), (first[1], second[1]), stages, watched, first[3])

    rounds = rounds_within(round_, seconds, at_most=10, on_round=on_round)
    stages = {
        name: {stage: float(np.median([each.stages[at][stage] for each in rounds])) for stage in first}
        for at, (name, first) in enumerate(zip(("first", "second"), rounds[0].stages, strict=True))
    }
    return QuestionFigures(
        rounds[0].frames,
        rounds[0].prompt_tokens,
        figure([each.watch for each in rounds]),
        figure([each.watch + each.asked[0] for each in rounds]),
        figure([each.asked[1] for each in rounds]),
        figure([each.first_token[1] for each in rounds]),
        stages,
    )


def seldom_enough(path: Path, frames: int, fps: float) -> float:
    """`fps`, or less where the video would have more than `frames` frames. Raises `SourceError`."""
    with open_source(path, fps=fps) as source:
        expected = source.expected_frames or 0
    return fps * frames / expected if expected > frames else fps


def _asked(
    session: VideoSession, question: str, new_tokens: int
) -> tuple[float, float, dict[str, float], int]:
    """Milliseconds to the answer's end and to its first token, stages, and tokens read."""
    since, read = _Stopwatch(session), list[float]()

    def on_prefill(done: int, total: int) -> None:
        if done == total:  # the first token is the largest of the logits that are there now
            read.append(since.milliseconds())

    answer = session.ask(question, max_new_tokens=new_tokens, on_prefill=on_prefill)
    whole = since.milliseconds()
    stages = {name: spent for name, spent in answer.timings_ms.items() if name not in ("load", "open_bundle")}
    return whole, read[0], stages, answer.prompt_tokens


class _Stopwatch:
    """Without the time that the session spends on loading graphs."""

    def __init__(self, session: VideoSession) -> None:
        self._timings = session.timings
        self._start, self._loaded = time.perf_counter(), self._load()

    def milliseconds(self) -> float:
        return (time.perf_counter() - self._start) * 1000 - (self._load() - self._loaded)

    def _load(self) -> float:
        return self._timings.milliseconds.get("load", 0.0)
