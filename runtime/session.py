"""From a video file and a question to an answer. Read this file first.

    with VideoSession.open("bundle") as session:
        session.watch("clip.mp4")                      # decode, pixels, vision, content: once a video
        answer = session.ask("What happens here?")     # context, sequence, prefill, decode: once a question
        print(answer.text)

Features do not depend on the question: they are kept, and every question reuses
them. Everything here is NumPy and ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llamavid.bundle import EMBEDDINGS, LANGUAGE_TOKENIZER, QUESTION_VOCABULARY, Bundle, open_bundle
from llamavid.errors import PromptError, UsageError
from llamavid.prompt import Part, Turn, checked_question, conversation, movie
from llamavid.runtime.assembly import assemble
from llamavid.runtime.clip import frame_pixels
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.frames import Frame, Source
from llamavid.runtime.memory import require_memory
from llamavid.runtime.sources import open_source
from llamavid.runtime.timing import Timings
from llamavid.sampling import Sampler, Sampling
from llamavid.tokenizer import LanguageTokenizer, QuestionTokenizer, TextStream

Array = npt.NDArray[np.floating]
T = TypeVar("T")

VISION_BATCH = 2  # frames a run of the encoder: more do not help a CPU, and progress shows sooner
CONTEXT_BATCH = 32  # frames a run of the context graph


@dataclass(frozen=True)
class FrameTime:
    """Which frame, and when it is shown."""

    index: int
    pts_seconds: float


@dataclass(frozen=True)
class Watched:
    """A video as the model sees it, before any question. T frames, R = 1+N or N rows, n content tokens."""

    features: Array  # [T, R, C]
    content_tokens: Array  # [T, n, D]
    frames: tuple[FrameTime, ...]
    notes: tuple[str, ...] = ()  # what the user should know of the file


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    token_ids: tuple[int, ...]  # without </s>
    finish_reason: str  # "stop" at </s>, "length" at max_new_tokens
    prompt_tokens: int
    frames: tuple[FrameTime, ...]
    timings_ms: dict[str, float]


class VideoSession:
    """One bundle, one video at a time, any number of questions. One thread may use it at a time."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, timings: Timings | None = None) -> None:
        """`threads` of one operation; None lets ONNX Runtime choose."""
        self.bundle = bundle
        self.config = bundle.manifest.model
        self.timings = timings or Timings()
        self.watched: Watched | None = None
        self._threads = threads
        self._executors: dict[str, OnnxExecutor] = {}
        self._decoder: Decoder | None = None
        self._language_tokenizer = LanguageTokenizer(bundle.path(LANGUAGE_TOKENIZER))
        self._question_tokenizer = QuestionTokenizer(
            bundle.path(QUESTION_VOCABULARY), max_tokens=self.config.text_decoder.max_tokens
        )
        self._embeddings = np.load(bundle.path(EMBEDDINGS), mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, folder: Path | str, *, threads: int | None = None) -> VideoSession:
        """Opens and verifies a bundle. Raises `BundleError`."""
        timings = Timings()
        with timings.stage("open_bundle"):
            bundle = open_bundle(folder)
        return cls(bundle, threads=threads, timings=timings)

    def __enter__(self) -> VideoSession:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees the graphs, the cache and the features."""
        self._executors.clear()
        self._decoder = self.watched = None

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
        """
        self.watched = None
        with self.timings.stage("decode_video"):
            opened = open_source(path, fps=fps)
        with opened as source:
            self._check_length(source.expected_frames or 0)
            self._check_memory(source.expected_frames or 0)
            times: list[FrameTime] = []
            features: list[Array] = []
            for batch in _batches(self._timed(source.frames(), "decode_video"), VISION_BATCH):
                times += [FrameTime(frame.index, frame.pts_seconds) for frame in batch]
                self._check_length(len(times))
                features.append(self._encode(batch, source))
                on_frame(len(times), source.expected_frames)
            return self.adopt(np.concatenate(features), times, notes=source.notes)

    def adopt(self, features: Array, frames: Sequence[FrameTime], *, notes: Sequence[str] = ()) -> Watched:
        """Makes stored features [T, R, C] the video that questions are about."""
        features = features.astype(self._dtype("content", "features"), copy=False)
        with self.timings.stage("content"):
            content = self._in_batches("content", features, "content_tokens")
        self.watched = Watched(features, content, tuple(frames), tuple(notes))
        return self.watched

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

        Raises:
            PromptError: the question is empty or too long, or all does not fit the model's context.
        """
        parts = conversation(question, template=template or self.bundle.manifest.template, history=history)
        rows = self._frame_tokens(question, truncate_question)
        return self._answer(
            parts,
            [rows.reshape(-1, rows.shape[-1])],
            max_new_tokens,
            sampling or Sampling(),
            on_text,
            on_prefill,
        )

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
    ) -> Answer:
        """Answers about a movie: `subtitles[i]` is said after frame i. Otherwise as `ask`."""
        rows = self._frame_tokens(question, truncate=False)
        if len(subtitles) != len(rows):
            raise PromptError(
                f"{len(subtitles)} subtitles", expected=f"one for each of the {len(rows)} frames"
            )
        template = template or self.bundle.manifest.template
        parts = movie(question, subtitles, tokens_per_frame=rows.shape[1], template=template)
        flat = rows.reshape(-1, 1, rows.shape[-1])
        return self._answer(parts, list(flat), max_new_tokens, sampling or Sampling(), on_text, on_prefill)

    def check_question(self, question: str, *, truncate: bool = False) -> None:
        """Raises what `ask` would raise about the question alone, before a video is watched."""
        self._question_tokenizer.ids(checked_question(question), truncate=truncate)

    # Frames to features.

    def _encode(self, frames: Sequence[Frame], source: Source) -> Array:
        """Frames -> features [t, 1+N, C]."""
        with self.timings.stage("pixels"):
            pixels = frame_pixels(frames, source.kind, self.config.preprocessing)
        vision = self._executor("vision")
        with self.timings.stage("vision"):
            return vision.run({"pixels": pixels.astype(self._dtype("vision", "pixels"), copy=False)})[
                "features"
            ]

    def _check_length(self, frames: int) -> None:
        """Before hours of encoding: would the frames alone overflow the context?"""
        per_frame, limit = self.config.tokens_per_frame, self.config.language.context_length
        if frames * per_frame >= limit:
            raise PromptError(
                f"{frames} frames need {frames * per_frame} tokens",
                expected=f"fewer than {limit}, the model's context",
                next_step="Lower --fps, or use a shorter video or a long-video checkpoint.",
            )

    def _check_memory(self, frames: int) -> None:
        """Before hours of encoding: will the features of so many frames fit?"""
        vision = self.config.vision
        frame = (1 + vision.patches) * vision.width * self._dtype("vision", "features").itemsize
        require_memory(
            frames * frame, f"the features of {frames} frames", "Lower --fps, or use a shorter video."
        )

    # A question to its answer.

    def _frame_tokens(self, question: str, truncate: bool) -> Array:
        """The watched frames in the light of a question, [T, 1+n, D]."""
        if self.watched is None:
            raise UsageError("no video is watched", next_step="Call watch() first.")
        ids = self._question_tokenizer.ids(checked_question(question), truncate=truncate)
        self._executor("context")
        self.timings.restart("context", "sequence", "prefill", "decode")
        with self.timings.stage("context"):
            context = self._in_batches("context", self.watched.features, "context_tokens", question_ids=ids)
        return np.concatenate([context, self.watched.content_tokens], axis=1)

    def _answer(
        self,
        parts: Sequence[Part],
        rows: Sequence[Array],
        max_new_tokens: int,
        sampling: Sampling,
        on_text: Callable[[str], None],
        on_prefill: Callable[[int, int], None],
    ) -> Answer:
        assert self.watched is not None
        if max_new_tokens < 1:
            raise UsageError(f"max-new-tokens is {max_new_tokens}", expected="1 or more")
        with self.timings.stage("sequence"):
            ids = self._language_tokenizer.ids(parts)
            sequence = assemble(ids, self._embeddings, rows, dtype=self._dtype("llm", "inputs_embeds"))
        tokens = sequence.shape[1]
        decoder = self._language_model()
        decoder.reserve(tokens + max_new_tokens)
        with self.timings.stage("prefill"):
            logits = decoder.prefill(sequence, on_chunk=lambda done: on_prefill(done, tokens))
        token_ids, text, reason = self._generate(decoder, logits, max_new_tokens, sampling, on_text)
        return Answer(text, token_ids, reason, tokens, self.watched.frames, self.timings.rounded())

    def _generate(
        self,
        decoder: Decoder,
        logits: Array,
        max_new_tokens: int,
        sampling: Sampling,
        on_text: Callable[[str], None],
    ) -> tuple[tuple[int, ...], str, str]:
        sampler, stream, token_ids, text = (
            Sampler(sampling),
            TextStream(self._language_tokenizer),
            list[int](),
            "",
        )
        reason = "length"
        with self.timings.stage("decode"):
            while True:
                token = sampler.pick(logits)
                if token == self.config.language.eos_id:
                    reason = "stop"
                    break
                token_ids.append(token)
                text += _told(stream.push(token), on_text)
                if len(token_ids) == max_new_tokens:
                    break
                row = self._embeddings[token].astype(self._dtype("llm", "inputs_embeds"))
                logits = decoder.decode_one(row)
        text += _told(stream.finish(), on_text)
        return tuple(token_ids), text.strip(), reason

    # Graphs, loaded when they are first needed.

    def _executor(self, graph: str) -> OnnxExecutor:
        if graph not in self._executors:
            entry = self.bundle.manifest.graphs[graph]
            weights = self.bundle.manifest.files[f"{entry.file}.data"].size
            require_memory(weights, f"graph {graph}", "Free some, or export with a smaller precision.")
            with self.timings.stage("load"):
                file = self.bundle.path(entry.file)
                self._executors[graph] = OnnxExecutor(file, entry.contract, threads=self._threads)
        return self._executors[graph]

    def _language_model(self) -> Decoder:
        if self._decoder is None:
            contract = self.bundle.manifest.graphs["llm"].contract
            self._decoder = Decoder(self._executor("llm"), contract, self.config.language)
        return self._decoder

    def _in_batches(self, graph: str, features: Array, output: str, **inputs: npt.NDArray[np.int64]) -> Array:
        executor = self._executor(graph)
        starts = range(0, len(features), CONTEXT_BATCH)
        return np.concatenate(
            [executor.run({"features": features[i : i + CONTEXT_BATCH], **inputs})[output] for i in starts]
        )

    def _dtype(self, graph: str, tensor: str) -> np.dtype:
        return self.bundle.manifest.graphs[graph].contract.spec(tensor).dtype.numpy

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


def _told(text: str, on_text: Callable[[str], None]) -> str:
    if text:
        on_text(text)
    return text
