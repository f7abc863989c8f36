"""From a source to answers as they fall due: one thread reads frames, this one encodes and answers.

    following = Following(session, source, every_seconds=5)
    for answer in following.answers():
        print(answer.last.pts_seconds, answer.text)
    print(following.counters())

Note [When an answer falls due]
    Every `every_seconds` of the stream's own time, counted from its first frame, and once more at the end if
    frames came since. A source that waits is answered at the first frame at or after each such moment. A live
    one does not wait: what fell due while the model was answering is answered once, about the newest frame,
    and the moments in between are counted as skipped. Frames that found no room meanwhile are dropped, oldest
    first, and counted too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from llamavid.errors import UsageError
from llamavid.runtime.clip import is_padded
from llamavid.runtime.live.source import StreamSource
from llamavid.runtime.standing import StandingAnswer
from llamavid.runtime.stream import FrameStream, PixelBatch, WhenFull
from llamavid.runtime.stream_session import StreamSession
from llamavid.runtime.video.frames import FrameTime

WAITING_FRAMES = 8  # prepared frames between the threads: 0.6 MB each at 224 pixels
LEAST_EVERY = 0.001  # seconds: moments are counted, and a number of them has to be one
BATCH = 4  # frames a run of the encoder, where so many wait


@dataclass(frozen=True)
class FollowingCounters:
    """What became of everything. `skipped`: moments of Note [When an answer falls due] that got no answer."""

    source: dict[str, int]
    stream: dict[str, int]
    frames_encoded: int
    frames_read_again: int
    answers: int
    skipped: int


class Following:
    """One source, followed once. Any thread may call `stop`."""

    def __init__(
        self,
        session: StreamSession,
        source: StreamSource,
        *,
        every_seconds: float,
        until_seconds: float = math.inf,
        fps: float | None = None,
    ) -> None:
        """
        Args:
            until_seconds: of the stream's own time; the first frame at or after it is the last one.
            fps: frames to keep for each second, of a source that does not choose; None keeps all.
        """
        if not every_seconds >= LEAST_EVERY:
            raise UsageError(f"every is {every_seconds} s", expected=f"at least {LEAST_EVERY}")
        self._session, self._source, self._every = session, source, every_seconds
        preprocessing = session.bundle.manifest.model.preprocessing
        self._pads = is_padded(source.kind, preprocessing)
        self._stream = FrameStream(
            preprocessing,
            fps=fps,
            capacity=WAITING_FRAMES,
            when_full=WhenFull.DROP_OLDEST if source.is_live else WhenFull.BLOCK,
            dtype=session.pixels_dtype,
        )
        self._until_seconds = until_seconds
        self._answers = self._skipped = 0
        self._due: float | None = None  # known with the first frame

    @property
    def notes(self) -> list[str]:
        """One-sentence remarks for the user, complete when `answers` has ended."""
        return self._stream.notes

    def answers(self) -> Iterator[StandingAnswer]:
        """Until the source or its time ends. Raises what reading raises, after the frames before that."""
        answered = True
        with self._stream, self._stream.fed_by(self._source.frames(), pad=self._pads):
            try:
                for piece in self._pieces():
                    self._session.see(piece.pixels, piece.frames)
                    newest_seconds = piece.frames[-1].pts_seconds
                    answered = self._falls_due(newest_seconds)
                    if answered:
                        yield from self._all_answers()
                    if newest_seconds >= self._until_seconds:
                        break
            finally:
                self._source.close()
        if not answered:
            yield from self._all_answers()

    def stop(self) -> None:
        """`answers` ends soon, with an answer about what was seen."""
        self._source.close()

    def counters(self) -> FollowingCounters:
        source: Any = self._source.counters
        return FollowingCounters(
            asdict(source),
            asdict(self._stream.counters),
            self._session.frames_encoded,
            self._session.frames_read_again,
            self._answers,
            self._skipped,
        )

    def _all_answers(self) -> Iterator[StandingAnswer]:
        for answer in self._session.answers():
            self._answers += 1
            yield answer

    def _pieces(self) -> Iterator[PixelBatch]:
        """Batches, cut after each frame at which an answer falls due, but for a live source's, and after the
        last frame of all."""
        for batch in self._stream.batches(BATCH):
            if self._due is None:
                self._due = batch.frames[0].pts_seconds + self._every
            start = 0
            while start < len(batch.frames):
                cut = self._until_seconds if self._source.is_live else min(self._due, self._until_seconds)
                stop = _first_from(cut, batch.frames, start) + 1
                yield PixelBatch(batch.pixels[start:stop], batch.frames[start:stop])
                start = stop

    def _falls_due(self, newest_seconds: float) -> bool:
        """Whether an answer is due; then all moments that have passed are dealt with."""
        assert self._due is not None
        if newest_seconds < self._due:
            return False
        moments = int((newest_seconds - self._due) // self._every) + 1
        self._due += moments * self._every
        self._skipped += moments - 1
        return True


def _first_from(seconds: float, frames: tuple[FrameTime, ...], start: int) -> int:
    """The place of the first frame at or after that moment, from `start` on; of the last where none is."""
    found = (at for at in range(start, len(frames)) if frames[at].pts_seconds >= seconds)
    return next(found, len(frames) - 1)
