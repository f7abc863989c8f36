"""Standing questions about a stream: every frame is encoded once, whatever the number of questions.

    with StreamSession(open_bundle("bundle"), ["What is happening?"], fps=1.0) as session:
        session.see(pixels, frames)          # as they come
        for answer in session.answers():     # as often as wanted
            print(answer.last.pts_seconds, answer.text)

Each question has a reading of its own, Note [A standing question's cache] in `llamavid.runtime.standing`.
Features are held only where questions may come later, and within a budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llamavid.bundle import QUESTION_VOCABULARY, Bundle
from llamavid.errors import PromptError
from llamavid.prompt import checked_question
from llamavid.runtime.encoder import CONTEXT_BATCH
from llamavid.runtime.features.memory import FeatureMemory, pixel_digests
from llamavid.runtime.language import LanguageModel, check_max_new_tokens
from llamavid.runtime.machine import open_machine
from llamavid.runtime.standing import StandingAnswer, StandingQuestion, Window
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.frames import FrameTime, check_fps
from llamavid.sampling import Sampling
from llamavid.tokenizer import QuestionTokenizer

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

WINDOW_SECONDS = 600.0
FEATURES_BYTES = 256 << 20  # six minutes at a frame a second, 0.72 MB each of EVA ViT-g
PROMPT_TOKENS = 512  # opening and question, beside frames and answer


class StreamSession:
    """One bundle, one stream, any number of standing questions. One thread may use it at a time."""

    def __init__(
        self,
        bundle: Bundle,
        questions: Sequence[str] = (),
        *,
        fps: float = 1.0,
        window_seconds: float | None = None,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        template: str | None = None,
        memory_bytes: int | None = None,
        remembers: bool = False,
        threads: int | None = None,
        on: str | None = None,
        allow_cpu: bool = False,
    ) -> None:
        """
        Args:
            fps: how many frames a second will come, at most.
            window_seconds: what an answer is about; ten minutes, or what fits the context, when left out.
            max_new_tokens: the longest answer.
            memory_bytes: what this process may hold, by Note [Budget] in `llamavid.runtime.features.budget`.
            remembers: hold features for questions that come later, oldest out first, in what `memory_bytes`
                leaves, or FEATURES_BYTES. Otherwise a question sees the frames that come after it.
            on, allow_cpu: what runs it, as `open_machine` in `llamavid.runtime.machine` takes them.

        Raises:
            PromptError: the window does not fit the model's context, or a question is empty or too long.
            DeviceError: there is not enough memory.
            UsageError: `max_new_tokens` is below 1, or `fps` is not above 0.
        """
        check_max_new_tokens(max_new_tokens)
        check_fps(fps)
        self.bundle, self._config = bundle, bundle.manifest.model
        self.timings = Timings()
        self._words = QuestionTokenizer(
            bundle.path(QUESTION_VOCABULARY), max_tokens=self._config.text_decoder.max_tokens
        )
        self._max_new_tokens, self._sampling = max_new_tokens, sampling or Sampling()
        self._template = template or bundle.manifest.template
        self.window = self._window(fps, window_seconds)
        self._standing: list[tuple[StandingQuestion, Ids]] = []
        self._machine = open_machine(
            bundle,
            on=on,
            allow_cpu=allow_cpu,
            timings=self.timings,
            threads=threads,
            memory_bytes=memory_bytes,
        )
        self._encoder, self._language = self._machine.encoder, LanguageModel(self._machine)
        features_bytes = FEATURES_BYTES
        if memory_bytes is not None:
            read = PROMPT_TOKENS + max_new_tokens + self.window.max_frames * self._config.tokens_per_frame
            caches = max(1, len(questions)) * read
            features_bytes = self._machine.features_share(memory_bytes, cache_tokens=caches)
        self._memory = FeatureMemory(features_bytes, on_full="evict") if remembers else None
        for question in questions:
            self.ask(question)

    def __enter__(self) -> StreamSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._standing.clear()
        if self._memory is not None:
            self._memory.close()
        self._machine.close()

    def ask(self, question: str) -> None:
        """A question to stand from now on. It sees the frames before it that are remembered.

        Raises:
            PromptError: the question is empty, too long, or there is no room for it beside the window.
            DeviceError: there is no memory for its cache.
        """
        question = checked_question(question)
        ids = self._words.ids(question, truncate=False)
        standing = StandingQuestion(
            question,
            self._language,
            self.window,
            template=self._template,
            tokens_per_frame=self._config.tokens_per_frame,
            max_new_tokens=self._max_new_tokens,
            sampling=self._sampling,
        )
        if self._memory is not None:
            self._show_remembered(self._memory, standing, ids)
        self._standing.append((standing, ids))

    def see(self, pixels: Array, frames: Sequence[FrameTime]) -> None:
        """Frames that are new, in order: pixels [n, 3, S, S].

        Raises:
            BundleError: a feature is not finite, or does not fit float16.
        """
        seen = self._encoder.see(pixels, frames)
        if self._memory is not None:
            for features, content in seen.batches(len(frames)):
                self._memory.append(
                    features,
                    content,
                    frame_indices=[frame.index for frame in frames],
                    pts_seconds=[frame.pts_seconds for frame in frames],
                    digests=pixel_digests(pixels),
                )
        for standing, ids in self._standing:
            with self.timings.stage("context"):
                tokens = self._encoder.tokens(seen, ids, batch=len(frames))
            with self.timings.stage("read"):
                standing.see(frames, tokens)

    def answers(
        self, *, on_text: Callable[[str, str], None] = lambda question, text: None
    ) -> Iterator[StandingAnswer]:
        """Of every question that has seen a frame, the answer about the window as it is now."""
        for standing, _ in self._standing:
            if not standing.has_seen:
                continue
            with self.timings.stage("answer"):
                answer = standing.answer(on_text=lambda text, q=standing.question: on_text(q, text))  # type: ignore[misc]
            yield answer

    @property
    def pixels_dtype(self) -> np.dtype:
        """What `see` takes without converting."""
        return self.bundle.manifest.graphs["vision"].contract.spec("pixels").dtype.numpy

    @property
    def frames_encoded(self) -> int:
        return self._encoder.encoded

    @property
    def frames_read_again(self) -> int:
        """What sliding windows cost, over all questions."""
        return sum(standing.read_again for standing, _ in self._standing)

    def _show_remembered(self, memory: FeatureMemory, standing: StandingQuestion, ids: Ids) -> None:
        if len(memory):
            times = list(map(FrameTime, memory.frame_indices, memory.pts_seconds))
            standing.see(times, self._encoder.tokens(memory, ids, batch=CONTEXT_BATCH))

    def _window(self, fps: float, seconds: float | None) -> Window:
        """In seconds and in frames; the hard cap is the model's context."""
        per_frame, context = self._config.tokens_per_frame, self._config.language.context_length
        fitting = (context - PROMPT_TOKENS - self._max_new_tokens) // per_frame
        wanted = math.floor((WINDOW_SECONDS if seconds is None else seconds) * fps) + 1
        if seconds is not None and wanted > fitting:
            raise PromptError(
                f"a window of {seconds:g} s is {wanted} frames at {fps:g} a second",
                expected=f"at most {max(0, fitting)} frames, which fill the model's context",
                next_step="Lower --window or --fps.",
            )
        if fitting < 1:
            raise PromptError(
                f"an answer of {self._max_new_tokens} tokens leaves no room for frames",
                expected=f"fewer than {context - PROMPT_TOKENS} tokens",
                next_step="Lower --max-new-tokens.",
            )
        frames = min(wanted, fitting)
        return Window(WINDOW_SECONDS if seconds is None else seconds, frames)
