"""From a video file and a question to an answer. Read this file first.

    with VideoSession.open("bundle") as session:
        session.watch("clip.mp4")                      # decode, pixels, vision, content: once a video
        answer = session.ask("What happens here?")     # context, sequence, prefill, decode: once a question
        print(answer.text)

Features do not depend on the question: they are kept within a budget, and every question reuses them.
A video that does not end is for `llamavid.runtime.stream_session`. What runs the graphs is chosen once, in
`llamavid.runtime.machine`: ONNX Runtime on the CPU, or engines on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llamavid.bundle import FRAME_GRAPHS, GRAPHS, QUESTION_VOCABULARY, Bundle, open_bundle
from llamavid.errors import PromptError, UsageError
from llamavid.prompt import Part, Turn, checked_question, conversation, movie
from llamavid.runtime.clip import frame_pixels
from llamavid.runtime.encoder import CONTEXT_BATCH
from llamavid.runtime.evidence import Evidence, EvidenceCollector
from llamavid.runtime.features.watched import FrameFeatures, Watched
from llamavid.runtime.language import LanguageModel, Vicuna, check_max_new_tokens
from llamavid.runtime.machine import Tokens, open_machine
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.frames import FrameTime
from llamavid.runtime.video.sources import open_source
from llamavid.sampling import Sampling
from llamavid.tokenizer import SLOT_ID, QuestionTokenizer

Array = npt.NDArray[np.floating]
T = TypeVar("T")

VISION_BATCH = 2  # frames a run of the encoder: more do not help a CPU, and progress shows sooner


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    token_ids: tuple[int, ...]  # without </s>
    finish_reason: str  # "stop" at </s>, "length" at max_new_tokens
    prompt_tokens: int
    frames: tuple[FrameTime, ...]
    timings_ms: dict[str, float]
    evidence: Evidence | None = None  # where it was asked for


class VideoSession:
    """One bundle, one video at a time, any number of questions. One thread may use it at a time."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        memory_bytes: int | None = None,
        timings: Timings | None = None,
        on: str | None = None,
        allow_cpu: bool = False,
        vicuna: Vicuna | None = None,
    ) -> None:
        """`threads` of one operation; None lets ONNX Runtime choose.

        Args:
            memory_bytes: what this process may hold, by Note [Budget] in `llamavid.runtime.features.budget`;
                None gives features a bounded share of what is free. Features beyond it lie on disk.
            on, allow_cpu: what runs it, as `open_machine` in `llamavid.runtime.machine` takes them.
            vicuna: answers instead of the bundle's language model, whose checkpoint it was made from. Who
                opened it closes it.

        Raises:
            BundleError, DeviceError, ParityError: engines were asked for, or are there, and cannot be used.
            UsageError: `vicuna` is of another model.
        """
        self.bundle = bundle
        self.config = bundle.manifest.model
        self.timings = timings or Timings()
        self.watched: Watched | None = None
        self._machine = open_machine(
            bundle,
            on=on,
            allow_cpu=allow_cpu,
            timings=self.timings,
            threads=threads,
            memory_bytes=memory_bytes,
            stages=GRAPHS if vicuna is None else FRAME_GRAPHS,
        )
        self._memory_bytes = memory_bytes
        self._encoder = self._machine.encoder
        self._language = LanguageModel(self._machine)
        self._cache: Any = None
        self._vicuna = vicuna
        if vicuna is not None and vicuna.language != self.config.language:
            raise UsageError(
                "the Vicuna has other dimensions than the bundle's language model",
                expected="both made from one checkpoint",
            )
        self._questions = QuestionTokenizer(
            bundle.path(QUESTION_VOCABULARY), max_tokens=self.config.text_decoder.max_tokens
        )

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        threads: int | None = None,
        memory_bytes: int | None = None,
        on: str | None = None,
        allow_cpu: bool = False,
        vicuna: Vicuna | None = None,
    ) -> VideoSession:
        """Opens and verifies a bundle. Raises `BundleError`, and as the class."""
        timings = Timings()
        with timings.stage("open_bundle"):
            bundle = open_bundle(folder)
        return cls(
            bundle,
            threads=threads,
            memory_bytes=memory_bytes,
            timings=timings,
            on=on,
            allow_cpu=allow_cpu,
            vicuna=vicuna,
        )

    def __enter__(self) -> VideoSession:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees the graphs, the cache and the features."""
        self._forget()
        self._machine.close()
        self._cache = None

    @property
    def frames_encoded(self) -> int:
        """How many ran through the encoder so far: equal ones and questions add none."""
        return self._encoder.encoded

    def watch(
        self,
        path: Path | str,
        *,
        fps: float = 1.0,
        on_frame: Callable[[int, int | None], None] = lambda done, expected: None,
    ) -> Watched:
        """Encodes a video or picture; the questions to come are about it.

        Args:
            fps: frames a second to look at.
            on_frame: called with the frames encoded so far and the number expected, if known.

        Raises:
            SourceError: the file cannot be read.
            PromptError: it has more frames than fit the model's context.
            DeviceError: its features fit neither memory nor disk.
        """
        self._forget()
        with self.timings.stage("decode_video"):
            opened = open_source(path, fps=fps)
        with opened as source:
            self._check_length(source.expected_frames or 0)
            memory = self._encoder.memory(frames=source.expected_frames or 0, memory_bytes=self._memory_bytes)
            times: list[FrameTime] = []
            try:
                size = self._encoder.batch or VISION_BATCH
                for batch in _batches(self._timed(source.frames(), "decode_video"), size):
                    new = [FrameTime(frame.index, frame.pts_seconds) for frame in batch]
                    self._check_length(len(times) + len(new))
                    with self.timings.stage("pixels"):
                        pixels = frame_pixels(batch, source.kind, self.config.preprocessing)
                    self._encoder.remember(memory, pixels, new)
                    times += new
                    on_frame(len(times), source.expected_frames)
            except BaseException:
                memory.close()
                raise
            return self._watch(times, memory, source.notes)

    def adopt(self, features: Array, frames: Sequence[FrameTime], *, notes: Sequence[str] = ()) -> Watched:
        """Makes stored features [T, R, C] the video that questions are about."""
        self._forget()
        return self._watch(frames, self._encoder.adopt(features, batch=CONTEXT_BATCH), notes)

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        template: str | None = None,
        history: Sequence[Turn] = (),
        truncate_question: bool = False,
        on_text: Callable[[str], None] = lambda text: None,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
        evidence: bool = False,
    ) -> Answer:
        """Answers a question about the watched video.

        Args:
            max_new_tokens: the longest answer.
            sampling: greedy when left out.
            template: a name of `llamavid.prompt.TEMPLATES`; the bundle's when left out.
            history: earlier turns of this conversation, oldest first.
            truncate_question: drop the beginning of a question that the text decoder cannot read whole.
            on_text: called with each piece of text as it comes.
            on_prefill: called with the tokens read so far and their number.
            evidence: gather what the question looked at, for `Answer.evidence`.

        Raises:
            PromptError: the question is empty or too long, or all does not fit the model's context.
            BundleError: evidence is asked of a bundle that gives none.
        """
        parts = conversation(question, template=template or self.bundle.manifest.template, history=history)
        tokens, seen = self._frame_tokens(question, truncate=truncate_question, evidence=evidence)
        answer = self._answer(parts, tokens, max_new_tokens, sampling or Sampling(), on_text, on_prefill)
        return replace(answer, evidence=seen)

    def ask_movie(
        self,
        question: str,
        subtitles: Sequence[str],
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        template: str | None = None,
        on_text: Callable[[str], None] = lambda text: None,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
        evidence: bool = False,
    ) -> Answer:
        """Answers about a movie: `subtitles[i]` is said after frame i. Otherwise as `ask`."""
        tokens, seen = self._frame_tokens(question, truncate=False, evidence=evidence)
        if len(subtitles) != tokens.frame_count:
            raise PromptError(
                f"{len(subtitles)} subtitles", expected=f"one for each of the {tokens.frame_count} frames"
            )
        template = template or self.bundle.manifest.template
        parts = movie(question, subtitles, tokens_per_frame=self.config.tokens_per_frame, template=template)
        answer = self._answer(parts, tokens, max_new_tokens, sampling or Sampling(), on_text, on_prefill)
        return replace(answer, evidence=seen)

    def look(self, question: str, *, truncate_question: bool = False) -> Evidence:
        """What a question looks at in the watched video, without answering it. Raises as `ask`."""
        _, seen = self._frame_tokens(question, truncate=truncate_question, evidence=True)
        assert seen is not None
        return seen

    def check_question(self, question: str, *, truncate: bool = False) -> None:
        """Raises what `ask` would raise about the question alone, before a video is watched."""
        self._questions.ids(checked_question(question), truncate=truncate)

    # What is watched.

    def _forget(self) -> None:
        if self.watched is not None:
            self.watched.held.close()
        self.watched = None
        self.timings.restart("decode_video", "pixels", "vision", "content")

    def _watch(self, frames: Sequence[FrameTime], held: FrameFeatures, notes: Sequence[str]) -> Watched:
        self.watched = Watched(tuple(frames), held, tuple(notes))
        return self.watched

    def _check_length(self, frames: int) -> None:
        """Before hours of encoding: would the frames alone overflow the context?"""
        per_frame, limit = self.config.tokens_per_frame, self.config.language.context_length
        if frames * per_frame >= limit:
            raise PromptError(
                f"{frames} frames need {frames * per_frame} tokens",
                expected=f"fewer than {limit}, the model's context",
                next_step="Lower --fps, or use a shorter video or a long-video checkpoint.",
            )

    # A question to its answer.

    def _frame_tokens(
        self, question: str, *, truncate: bool, evidence: bool
    ) -> tuple[Tokens, Evidence | None]:
        """The watched frames in the light of a question, and what it looked at if that is wanted."""
        if self.watched is None:
            raise UsageError("no video is watched", next_step="Call watch() first.")
        ids = self._questions.ids(checked_question(question), truncate=truncate)
        collector = EvidenceCollector(self.bundle) if evidence else None
        self._encoder.prepare_context()
        self.timings.restart("context", "sequence", "prefill", "decode")
        with self.timings.stage("context"):
            tokens = self._encoder.tokens(self.watched.held, ids, batch=CONTEXT_BATCH, collector=collector)
        return tokens, collector.evidence(self.watched.frames) if collector else None

    def _answer(
        self,
        parts: Sequence[Part],
        tokens: Tokens,
        max_new_tokens: int,
        sampling: Sampling,
        on_text: Callable[[str], None],
        on_prefill: Callable[[int, int], None],
    ) -> Answer:
        assert self.watched is not None
        check_max_new_tokens(max_new_tokens)
        if self._vicuna is not None:
            return self._answer_by(self._vicuna, parts, tokens, max_new_tokens, sampling, on_text)
        decoder = self._language.decoder()  # loaded, which is not part of the stages below
        with self.timings.stage("sequence"):
            sequence = self._language.sequence(self._language.ids(parts), tokens)
        read = sequence.shape[1]
        self._cache = cache = decoder.new_cache(read + max_new_tokens, reuse=self._cache)
        with self.timings.stage("prefill"):
            logits = decoder.prefill(cache, sequence, on_chunk=lambda done: on_prefill(done, read))
        with self.timings.stage("decode"):
            said = self._language.generate(
                cache, logits, max_new_tokens=max_new_tokens, sampling=sampling, on_text=on_text
            )
        return Answer(
            said.text, said.token_ids, said.finish_reason, read, self.watched.frames, self.timings.rounded()
        )

    def _answer_by(
        self,
        vicuna: Vicuna,
        parts: Sequence[Part],
        tokens: Tokens,
        max_new_tokens: int,
        sampling: Sampling,
        on_text: Callable[[str], None],
    ) -> Answer:
        """The language model is elsewhere: its prefill counts as `decode`, and tells no progress."""
        assert self.watched is not None
        ids = self._language.ids(parts)
        read = int((ids != SLOT_ID).sum()) + tokens.frame_count * self.config.tokens_per_frame
        with self.timings.stage("decode"):
            said = vicuna.generate(
                ids, tokens.on_host(), max_new_tokens=max_new_tokens, sampling=sampling, on_text=on_text
            )
        return Answer(
            said.text, said.token_ids, said.finish_reason, read, self.watched.frames, self.timings.rounded()
        )

    def _timed(self, items: Iterable[T], stage: str) -> Iterator[T]:
        """The same items; the time to make each goes to `stage`."""
        iterator = iter(items)
        while True:
            with self.timings.stage(stage):
                item = next(iterator, None)
            if item is None:
                return
            yield item


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
