"""What every source of a stream has, and what it tells of itself while frames come.

    source = open_stream_source("rtsp://camera.local/1", fps=1.0, on_event=print)
    for frame in source.frames():           # in one thread
        ...
    source.close()                          # from any thread: frames() ends within a second
    source.counters.reconnects

Note [Live times]
    Frames of a stream are at strictly increasing times, in seconds. Of cameras, network streams and pipelines
    0 is when `frames()` was first asked, and a connection's first frame is at the time that has really
    passed: a gap between two connections is as long as it was. Within a connection the stream's own times
    count from there. Where these run backwards, or ahead of the clock by more than `AHEAD_SECONDS`, the
    stream's clock was set anew or lies: the frame is given at the time that has really passed, and is
    counted. Files, folders and pipes have their own times from 0, however fast they are read. A pipe whose
    times run backwards, or a day ahead, goes on a frame's length after the frame before. Pushed frames keep
    the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from llamavid.errors import UsageError
from llamavid.runtime.video.frames import Frame, SourceKind

AHEAD_SECONDS = 10.0  # a server may send what it has kept since the last key frame at once


class EventKind(Enum):
    CONNECTED = "connected"  # frames come, at first or again
    UNREACHABLE = "unreachable"  # an attempt to connect that gave no frame
    LOST = "lost"  # the other side ended a connection
    STALLED = "stalled"  # no frame came for too long
    CRASHED = "crashed"  # the decoder's process died
    SIZE = "size"
    CODEC = "codec"
    DAMAGED = "damaged"
    BACKWARDS = "backwards"
    JUMP = "jump"
    REFUSED = "refused"  # a pushed frame that is none
    DROPPED = "dropped"  # a pushed frame that nobody fetched in time
    NOTE = "note"
    ENDED = "ended"


@dataclass(frozen=True)
class SourceEvent:
    """Something that happened to a source.

    text: one sentence, without passwords.
    at_seconds: on the clock of the frames' times; of files, folders and pushed frames, the latest frame's.
    """

    kind: EventKind
    text: str
    at_seconds: float


@dataclass
class SourceCounters:
    """What happened so far. Read it at any time; only the source writes.

    frames: given by `frames()`.
    reconnects: connections that gave frames, after the first.
    failed_attempts: attempts to connect that gave no frame, without crashes.
    stalls: connections given up because no frame came; of a pipe, waits of that length.
    damaged: frames that could not be decoded, or only in part, as far as the decoder tells; pictures of a
        folder that cannot be read.
    backwards: frames whose time was not after the frame before. Pushed ones were refused.
    jumps: frames whose time ran ahead of the clock.
    crashes: processes of the decoder that died.
    refused: pushed frames that were none.
    dropped: pushed frames that nobody fetched in time.
    """

    frames: int = 0
    reconnects: int = 0
    failed_attempts: int = 0
    stalls: int = 0
    size_changes: int = 0
    codec_changes: int = 0
    damaged: int = 0
    backwards: int = 0
    jumps: int = 0
    crashes: int = 0
    refused: int = 0
    dropped: int = 0


OnEvent = Callable[[SourceEvent], None]
"""Called in the thread that reads `frames()`, or pushes. It may call `close`."""


class StreamSource(Protocol):
    """What `llamavid.runtime.stream` reads.

    name: as the user wrote it, without passwords.
    is_live: frames come whether anyone is ready or not, and who reads drops the late ones. Others wait.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> SourceKind: ...
    @property
    def is_live(self) -> bool: ...
    @property
    def counters(self) -> SourceCounters: ...

    def frames(self) -> Iterator[Frame]:
        """The kept frames, once. Ends when the source has ended for good or was closed.

        Raises:
            SourceError: it never came up, or is nothing that can be read.
            UsageError: the frames were read before.
        """

    def close(self) -> None:
        """From any thread, and twice is fine."""


def read_before(name: str) -> UsageError:
    expected, next_step = "one pass over an open source", "Open it again."
    return UsageError(f"the frames of {name!r} were read before this", expected=expected, next_step=next_step)


def ignore(event: SourceEvent) -> None:
    """For who does not want to know."""
