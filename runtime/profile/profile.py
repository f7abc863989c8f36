"""A whole profile of one bundle on one machine. Read this file first.

    video       decode, pixels                          `video_times`
    questions   watch, first, second                    `question_times`, through a session as a user has it
    frames      encoder, content, decoder, context      `modules`, at each batch: the paper's Table 9
    language    prefill, decode                         `language_times`
    roofline    operations and bytes against ceilings   `roofline`, `measured_ceilings`

What runs is chosen by `open_machine`, so engines without a stamp are refused before anything is timed, and so
is a bundle whose graphs were never compared: a wrong engine may be the faster one. Meanwhile `watch` looks at
the machine; what it sees marks the profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamavid.bundle import QUESTION_VOCABULARY, Bundle
from llamavid.errors import DeviceError
from llamavid.prompt import checked_question
from llamavid.runtime.machine import CPU, Machine, OnCpu, open_machine
from llamavid.runtime.profile.document import (
    FORMAT_VERSION,
    Conditions,
    FrameFigures,
    LanguageFigures,
    Profile,
    QuestionFigures,
    VideoFigures,
)
from llamavid.runtime.profile.language_times import language_figures
from llamavid.runtime.profile.machine_state import machine_facts, machine_state
from llamavid.runtime.profile.modules import frame_figures
from llamavid.runtime.profile.question_times import question_figures
from llamavid.runtime.profile.roofline import roofline
from llamavid.runtime.profile.stages import Origin, Stages
from llamavid.runtime.profile.video_times import video_figures
from llamavid.runtime.profile.vouching import parity_words, wide_spreads
from llamavid.runtime.profile.watch import Sample, Watch, ceiling_marks, marks, told
from llamavid.runtime.session import VideoSession
from llamavid.runtime.timing import Timings
from llamavid.tokenizer import QuestionTokenizer

FPS = 1.0


class Tell(Protocol):
    """Progress: what, how much of it is done, of how much."""

    def __call__(self, what: str, done: int, total: int | None) -> None: ...


@dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    Args:
        seconds: about the most that one figure, or one batch, may take.
        threads: of one operation on the CPU; None: all cores.
    """

    videos: tuple[Path, ...]
    questions: tuple[str, ...]  # two
    frames: int = 100
    batches: tuple[int, ...] = (1, 8, 32)
    new_tokens: int = 64
    seconds: float = 20.0
    threads: int | None = None


def profile_bundle(
    bundle: Bundle,
    wanted: Wanted,
    *,
    on: str | None = None,
    allow_cpu: bool = False,
    tell: Tell = lambda what, done, total: None,
) -> Profile:
    """Measures everything.

    Args:
        on, allow_cpu: as `open_machine` takes them.

    Raises:
        BundleError, DeviceError, ParityError: what was asked for cannot be used, or was never compared.
        SourceError: a video cannot be read.
        PromptError: a question, or so many frames, do not fit the model.
    """
    with (
        Watch() as watch,
        closing(
            open_machine(bundle, on=on, allow_cpu=allow_cpu, timings=Timings(), threads=wanted.threads)
        ) as machine,
    ):
        # 1) as a user has it: a session of its own, which leaves nothing in memory
        questions = _questions(bundle, wanted, CPU if isinstance(machine, OnCpu) else on, tell)
        video, pixels = _video(bundle, wanted, tell)
        # 2) module by module
        stages, notes = machine.stages(), _short_video(video)
        ids = _question_ids(bundle, wanted.questions[0])
        frames = tuple(_frames(stages, bundle, pixels, ids, wanted, tell, notes))
        language = _language(machine, wanted, questions.prompt_tokens, tell)
        # 3) what would be possible
        samples = list(watch.samples)
        ceilings = stages.ceilings(lambda what: tell(what, 0, None))
    later = ceiling_marks(watch.samples[len(samples) :])
    marked = (*marks(samples), *wide_spreads(frames, language, questions), *later)
    conditions = _conditions(machine, stages.origin, wanted, video, samples, marked)
    roof = roofline(bundle.manifest.model, ids.shape[1], frames, language, stages.origin, ceilings)
    return Profile(FORMAT_VERSION, conditions, video, frames, language, questions, roof, tuple(notes))


def _questions(bundle: Bundle, wanted: Wanted, on: str | None, tell: Tell) -> QuestionFigures:
    with VideoSession(bundle, threads=wanted.threads, on=on) as session:
        return question_figures(
            session,
            wanted.videos[0],
            wanted.questions,
            frames=wanted.frames,
            fps=FPS,
            new_tokens=wanted.new_tokens,
            seconds=wanted.seconds,
            on_round=_told(tell, "two questions"),
        )


def _video(bundle: Bundle, wanted: Wanted, tell: Tell) -> tuple[VideoFigures, npt.NDArray[np.float32]]:
    return video_figures(
        wanted.videos,
        bundle.manifest.model.preprocessing,
        frames=wanted.frames,
        fps=FPS,
        seconds=wanted.seconds,
        on_round=_told(tell, "decoding"),
    )


def _language(machine: Machine, wanted: Wanted, prompt_tokens: int, tell: Tell) -> LanguageFigures:
    return language_figures(
        machine.decoder(),
        machine.bundle.manifest.model.language,
        prompt_tokens=prompt_tokens,
        new_tokens=wanted.new_tokens,
        seconds=wanted.seconds,
        on_round=_told(tell, "language model"),
    )


def _frames(
    stages: Stages,
    bundle: Bundle,
    pixels: npt.NDArray[np.float32],
    question_ids: npt.NDArray[np.int64],
    wanted: Wanted,
    tell: Tell,
    notes: list[str],
) -> Iterator[FrameFigures]:
    """Each batch that the machine takes. Raises `DeviceError` where it takes none."""
    largest = stages.largest_batch
    taken = [batch for batch in wanted.batches if largest is None or batch <= largest]
    left = [str(batch) for batch in wanted.batches if batch not in taken]
    if not taken:
        raise DeviceError(
            f"the engines take at most {largest} frames a run",
            expected=f"one of --batch {','.join(left)}",
            next_step="Pass a smaller --batch, or build them again with larger --frames.",
        )
    if left:
        notes.append(f"the engines take at most {largest} frames a run: batch {', '.join(left)} is left out")
    for batch in taken:
        yield frame_figures(
            stages,
            bundle.manifest.model,
            pixels,
            question_ids,
            batch=batch,
            frames=wanted.frames,
            seconds=wanted.seconds,
            on_round=_told(tell, f"frames, {batch} a run"),
        )


def _told(tell: Tell, what: str) -> Callable[[int, int], None]:
    tell(what, 0, None)
    return lambda done, of: tell(what, done, of)


def _question_ids(bundle: Bundle, question: str) -> npt.NDArray[np.int64]:
    limit = bundle.manifest.model.text_decoder.max_tokens
    return QuestionTokenizer(bundle.path(QUESTION_VOCABULARY), max_tokens=limit).ids(
        checked_question(question)
    )


def _short_video(video: VideoFigures) -> list[str]:
    if video.frames == video.asked:
        return []
    return [
        f"{video.name}: {video.frames} frames at {FPS:g} a second, {video.asked} were asked for; larger runs "
        "repeat them"
    ]


def _conditions(
    machine: Machine,
    origin: Origin,
    wanted: Wanted,
    video: VideoFigures,
    samples: Sequence[Sample],
    marked: tuple[str, ...],
) -> Conditions:
    alike = {
        "on": machine.name,
        **machine_facts(),
        "threads": str(wanted.threads or "all"),
        "precision": ", ".join(f"{stage} {name}" for stage, name in origin.precisions.items()),
        "batch": ", ".join(map(str, wanted.batches)),
        "bundle": machine.bundle.digest,
        "engines": origin.digest if origin.digest != machine.bundle.digest else "",
        "video": f"{video.name}, {video.size}, {video.frames} frames",
        "questions": " | ".join(wanted.questions),
        "new tokens": str(wanted.new_tokens),
    }
    return Conditions(
        {name: text for name, text in alike.items() if text},
        {**machine_state(), **told(samples)},
        parity_words(origin.parity),
        marked,
    )
