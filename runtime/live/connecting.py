"""A source that is connected to, again and again: camera, network stream, pipeline; or once: the pipe."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

from llamavid.errors import SourceError
from llamavid.runtime.live.address import Address
from llamavid.runtime.live.link import ClosedError, Link, LiveLimits, LostError
from llamavid.runtime.live.source import EventKind, OnEvent, SourceCounters, SourceEvent, read_before
from llamavid.runtime.live.timeline import LEAST_STEP_SECONDS
from llamavid.runtime.video.frames import Frame, SourceKind
from llamavid.runtime.yuv import Picture

MAX_NOTES = 20


class ConnectedSource:
    """Frames of an address, whatever becomes of a connection: Note [Live times] has the times.

    Each connection is a process of its own, by Note [A process to decode in] in
    `llamavid.runtime.video.decoding`: when it is lost, stalls or crashes, that is an event, and the next one
    is made after a pause.
    """

    kind = SourceKind.VIDEO

    def __init__(self, address: Address, *, fps: float, limits: LiveLimits, on_event: OnEvent) -> None:
        self.name, self.is_live, self.counters = address.name, address.is_live, SourceCounters()
        self._address, self._fps, self._limits, self._on_event = address, fps, limits, on_event
        self._closed = threading.Event()
        self._began = 0.0
        self._latest: float | None = None  # time of the latest frame
        self._size: tuple[int, int] | None = None
        self._codec: str | None = None
        self._reason: str | None = None  # why the latest attempt failed
        self._notes: set[str] = set()
        self._was_read = self._wait_is_told = False
        self._frames = self._connections()

    def frames(self) -> Iterator[Frame]:
        if self._was_read:
            raise read_before(self.name)
        self._was_read = True
        return self._frames

    def close(self) -> None:
        self._closed.set()
        with suppress(ValueError):  # it is running, in another thread, and ends there
            self._frames.close()

    def __enter__(self) -> ConnectedSource:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _connections(self) -> Generator[Frame, None, None]:
        self._began = time.monotonic()
        failures = 0
        while not self._closed.is_set():
            began, frames_before = time.monotonic(), self.counters.frames
            try:
                yield from self._connection()
            except ClosedError:
                return
            except LostError as lost:
                if not self.is_live:
                    return self._end(lost)
                self._tell_loss(lost, gave_frames=self.counters.frames > frames_before)
            except SourceError as error:
                if self._latest is None:
                    raise
                self._tell_loss(LostError(EventKind.LOST, str(error)), gave_frames=False)
            has_settled = time.monotonic() - began >= self._limits.settled_seconds
            failures = 1 if has_settled else failures + 1
            self._closed.wait(self._pause(failures))

    def _connection(self) -> Iterator[Frame]:
        deadline = float("inf") if self._latest is not None else self._began + self._limits.give_up_seconds
        counts, base = [0, 0, 0], None
        with ExitStack() as opened:
            link = Link(
                self._address,
                fps=self._fps,
                limits=self._limits,
                closed=self._closed,
                deadline=deadline,
                opened=opened,
            )
            for message in link.messages():
                if message["what"] == "waits":
                    self._tell_wait(message["seconds"])
                    continue
                self._wait_is_told = False
                if message["what"] == "look":
                    self._tell_look(message)
                counts = self._tell_counts(message, counts)
                if message["what"] == "frame":
                    picture = link.picture(message)
                    if base is None:
                        base = self._connected()
                    yield self._frame(base + message["seconds"], picture)

    def _connected(self) -> float:
        """A connection's first frame is there. Gives its time."""
        if not self.is_live:
            self._tell(EventKind.CONNECTED, f"Frames come from {self.name}.")
            return 0.0
        base = time.monotonic() - self._began
        if self._latest is None:
            self._tell(EventKind.CONNECTED, f"Frames come from {self.name}.")
        else:
            base = max(base, self._latest + LEAST_STEP_SECONDS)
            self.counters.reconnects += 1
            gap = base - self._latest
            self._tell(EventKind.CONNECTED, f"Frames come from {self.name} again, after {gap:.1f} s without.")
        return base

    def _frame(self, pts_seconds: float, picture: Picture) -> Frame:
        if self._latest is not None and pts_seconds <= self._latest:
            raise LostError(EventKind.CRASHED, "the decoder answers nonsense")
        self._latest = pts_seconds
        self.counters.frames += 1
        return Frame(self.counters.frames - 1, pts_seconds, picture)

    def _pause(self, failures: int) -> float:
        longest = self._limits.first_pause_seconds * 2.0 ** min(failures - 1, 30)
        return min(longest, self._limits.longest_pause_seconds) * random.uniform(0.5, 1.0)

    # What is told

    def _tell_loss(self, lost: LostError, *, gave_frames: bool) -> None:
        """Raises `SourceError` where the source never came up and its time is over."""
        if lost.kind is EventKind.CRASHED:
            self.counters.crashes += 1
            self._tell(EventKind.CRASHED, f"{self._with_name(lost.reason)}.")
        elif not gave_frames:
            self.counters.failed_attempts += 1
            self._tell(EventKind.UNREACHABLE, f"{self._with_name(lost.reason)}.")
        elif lost.kind is EventKind.STALLED:
            self.counters.stalls += 1
            self._tell(EventKind.STALLED, f"{self._with_name(lost.reason)}.")
        else:
            self._tell(EventKind.LOST, f"{self._with_name(lost.reason)}.")
        is_over = time.monotonic() - self._began >= self._limits.give_up_seconds
        if not is_over or self._reason is None:  # an attempt cut short tells less than the one before
            self._reason = lost.reason
        if is_over and self._latest is None:
            raise self._given_up(self._reason)

    def _end(self, lost: LostError) -> None:
        """Of what is connected to once: an end after frames is one, all else is an error."""
        if lost.kind is EventKind.CRASHED:
            self.counters.crashes += 1
        if lost.kind is EventKind.STALLED and self._latest is None:
            raise self._given_up(lost.reason)
        if lost.kind is not EventKind.LOST or self._latest is None:
            raise SourceError(self._with_name(lost.reason), next_step="Check what is sent there.")
        self._tell(EventKind.ENDED, f"{self.name} after {self.counters.frames} frames: {lost.reason}.")

    def _with_name(self, reason: str) -> str:
        return reason if repr(self.name) in reason else f"{self.name}: {reason}"

    def _given_up(self, reason: str) -> SourceError:
        given = f"{self.name!r} gave no frame for {self._limits.give_up_seconds:g} s: {reason}"
        return SourceError(given, next_step="Check that it runs, and how it is written.")

    def _tell_wait(self, seconds: float) -> None:
        """Nothing comes through the pipe. Before the first frame that is for the time to give up."""
        if seconds >= self._limits.stall_seconds and not self._wait_is_told and self._latest is not None:
            self._wait_is_told = True
            self.counters.stalls += 1
            self._tell(EventKind.STALLED, f"{self.name}: nothing came for {seconds:.1f} s; it is waited for.")

    def _tell_look(self, look: dict[str, Any]) -> None:
        size, codec = (look["width"], look["height"]), look["codec"][:40]
        if self._size not in (None, size):
            self.counters.size_changes += 1
            self._tell(EventKind.SIZE, f"{self.name}: frames are {size[0]} x {size[1]} pixels now.")
        if self._codec not in (None, codec):
            self.counters.codec_changes += 1
            self._tell(EventKind.CODEC, f"{self.name}: the codec is {codec!r} now, and was {self._codec!r}.")
        self._size, self._codec = size, codec

    def _tell_counts(self, message: dict[str, Any], before: list[int]) -> list[int]:
        """With the notes that came along."""
        for note in message.get("notes", ()):
            if note not in self._notes and len(self._notes) < MAX_NOTES:
                self._notes.add(note)
                self._tell(EventKind.NOTE, note)
        counts: list[int] = message.get("counts", before)
        damaged, backwards, jumps = (max(0, now - then) for now, then in zip(counts, before, strict=True))
        if damaged:
            self.counters.damaged += damaged
            self._tell(EventKind.DAMAGED, f"{self.name}: {damaged} pictures are damaged.")
        if backwards:
            self.counters.backwards += backwards
            self._tell(
                EventKind.BACKWARDS, f"{self.name}: {backwards} times run backwards, and are set anew."
            )
        if jumps:
            self.counters.jumps += jumps
            self._tell(
                EventKind.JUMP, f"{self.name}: {jumps} times run ahead of the clock, and are set anew."
            )
        return counts

    def _tell(self, kind: EventKind, text: str) -> None:
        at_seconds = time.monotonic() - self._began if self.is_live else self._latest or 0.0
        self._on_event(SourceEvent(kind, text, at_seconds))
