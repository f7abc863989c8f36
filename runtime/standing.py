"""A standing question: asked about the last minutes of a video again and again, while frames keep coming.

Takes frame tokens, made in the light of the question; gives answers. Knows nothing of pixels or features.

Note [A standing question's cache]
    The language model has read  opening | frames ... | question | answer.  After each answer the cache is
    rolled back to before the question, so that it only ever grows by the frames that are new: the time to
    the first token is that of reading the question, whatever the length of the video, but for attention,
    which looks at more keys. Frames are read when there are enough of them for a run, not one by one.

Note [A window that slides]
    An answer is about the last `window_seconds`, and at most `max_frames` frames: hard caps. Keys hold what
    came before them, so a cache cannot lose its oldest frames and stay exact. When a frame would pass a cap,
    the oldest quarter goes at once and the rest is read again: each frame is read about four times over its
    life, and an answer sees three quarters of the window, or more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from llamavid.prompt import conversation
from llamavid.runtime.language import LanguageModel
from llamavid.runtime.machine import Tokens
from llamavid.runtime.video.frames import FrameTime
from llamavid.sampling import Sampling
from llamavid.tokenizer import SLOT_ID

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

NOTHING: Ids = np.empty(0, np.int64)

READ_TOGETHER = 32  # frames a run, where no answer asks for them sooner
KEPT_OF_A_WINDOW = 0.75


@dataclass(frozen=True)
class Window:
    """The part of a stream that a question is about; Note [A window that slides]."""

    seconds: float
    max_frames: int


@dataclass(frozen=True)
class StandingAnswer:
    """What the model said about a window."""

    question: str
    text: str
    token_ids: tuple[int, ...]  # without </s>
    finish_reason: str  # "stop" at </s>, "length" at max_new_tokens
    first: FrameTime
    last: FrameTime
    frames: int
    prompt_tokens: int
    first_token_ms: float  # from asking until the first token is known
    total_ms: float


class StandingQuestion:
    """One question and what the model has read for it. One thread at a time."""

    def __init__(
        self,
        question: str,
        language: LanguageModel,
        window: Window,
        *,
        template: str,
        tokens_per_frame: int,
        max_new_tokens: int,
        sampling: Sampling,
    ) -> None:
        """Raises `PromptError` where the window does not fit the model's context, `DeviceError` no memory."""
        self.question = question
        self._language, self._window = language, window
        self._max_new_tokens, self._sampling = max_new_tokens, sampling
        ids = language.ids(conversation(question, template=template))
        slot = int(np.flatnonzero(ids == SLOT_ID)[0])
        self._opening, self._slot, self._asking = ids[:slot], ids[slot : slot + 1], ids[slot + 1 :]
        fixed = len(self._opening) + len(self._asking) + max_new_tokens
        self._cache = language.decoder().new_cache(fixed + window.max_frames * tokens_per_frame)
        self._frames: deque[tuple[FrameTime, Tokens]] = deque()  # of the window, one at a time
        self._read = 0  # how many of them are in the cache
        self.read_again = 0  # frames, since the beginning: what sliding costs

    @property
    def has_seen(self) -> bool:
        return bool(self._frames)

    def see(self, frames: Sequence[FrameTime], tokens: Tokens) -> None:
        """Frames that are new, and their tokens. Times must not run backwards."""
        for at, frame in enumerate(frames):
            self._slide(frame.pts_seconds)
            self._frames.append((frame, tokens.frame(at)))
            if len(self._frames) - self._read >= READ_TOGETHER:
                self._read_new()

    def answer(self, *, on_text: Callable[[str], None] = lambda text: None) -> StandingAnswer:
        """Answers about the window. Only once it `has_seen` a frame."""
        assert self.has_seen, "no frame has been seen"
        start = time.perf_counter()
        logits = self._read_new(self._asking)
        prompt, first_token = self._cache.length, list[float]()
        try:
            said = self._language.generate(
                self._cache,
                logits,
                max_new_tokens=self._max_new_tokens,
                sampling=self._sampling,
                on_text=on_text,
                on_token=lambda: first_token.append(time.perf_counter()),
            )
        finally:  # also where `on_text` raises
            self._cache.length = prompt - len(self._asking)
        return StandingAnswer(
            self.question,
            said.text,
            said.token_ids,
            said.finish_reason,
            self._frames[0][0],
            self._frames[-1][0],
            len(self._frames),
            prompt,
            1000 * (first_token[0] - start),
            1000 * (time.perf_counter() - start),
        )

    # Reading: the cache holds the opening and the first `_read` frames.

    def _read_new(self, then: Ids = NOTHING) -> Array:
        """Reads what is new, and `then`, in one piece. Logits [V] after the last."""
        opening = self._opening if self._cache.length == 0 else NOTHING
        new = [tokens for _, tokens in islice(self._frames, self._read, None)]
        tokens = new[0].joined(new[1:]) if new else None
        sequence = self._language.sequence(np.concatenate([opening, self._slot[: len(new)], then]), tokens)
        logits = self._language.decoder().prefill(self._cache, sequence)
        self._read = len(self._frames)
        return logits

    def _slide(self, now_seconds: float) -> None:
        """Makes room for a frame at `now_seconds`."""
        oldest = now_seconds - self._window.seconds
        full = len(self._frames) == self._window.max_frames
        if not full and (not self._frames or self._frames[0][0].pts_seconds >= oldest):
            return
        most = int(KEPT_OF_A_WINDOW * self._window.max_frames)
        from_seconds = now_seconds - KEPT_OF_A_WINDOW * self._window.seconds
        while self._frames and (len(self._frames) > most or self._frames[0][0].pts_seconds < from_seconds):
            self._frames.popleft()
        self._cache.length = self._read = 0
        self.read_again += len(self._frames)
        self._read_new()
