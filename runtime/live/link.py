"""One connection to a live source, seen from here: what its process says, and what it means when it does not.

The other end is `llamavid.runtime.live.connection`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from llamavid.errors import DeviceError, SourceError
from llamavid.runtime.live.address import Address, AddressKind
from llamavid.runtime.live.source import EventKind
from llamavid.runtime.video.decode_process import (
    FAILURE,
    LEAST_MEMORY_BYTES,
    MEMORY_BYTES,
    NUMBER,
    PICTURE,
    DecodeProcess,
    Fields,
    UnclearError,
    ended_by_itself,
    memory_limit,
    signal_name,
)
from llamavid.runtime.yuv import Picture

STANDARD_INPUT = 0
STARTING_SECONDS = 10.0  # Python, NumPy and PyAV, on a small board under load
HANG_SECONDS = 30.0  # of who reads a pipe; as long as a file's decoder
SLICE_SECONDS = 0.1  # so soon closing is noticed; and time in which we ourselves were stopped is one slice

TELLING: Fields = {"counts": list, "notes": list}
MESSAGES: dict[str, Fields] = {
    "opened": {},
    "look": {"width": int, "height": int, "codec": str},
    "frame": {**TELLING, "seconds": NUMBER, **PICTURE},
    "alive": TELLING,  # pictures are decoded, none of them kept
    "waits": {"seconds": NUMBER},  # nothing has come through the pipe for so long
    "end": TELLING,
    "error": FAILURE,
    "final": FAILURE,  # trying again cannot help
    "missing": FAILURE,  # this machine lacks something
    "bug": {"trace": str},
}


@dataclass(frozen=True)
class LiveLimits:
    """How long to wait, and what a decoder may take.

    connect_seconds: for an answer, each time.
    stall_seconds: time without a decoded picture after which a connection is given up, and made again.
    give_up_seconds: time from the start without any frame after which the source is. A source that gave one
        is tried again for ever.
    first_pause_seconds, longest_pause_seconds: before connecting again. Doubled each time, and cut short by
        up to a half by chance, so that many readers of one server do not come back at once.
    settled_seconds: a connection that lasted as long makes the next pause the first one again.
    memory_bytes, least_memory_bytes: as in `llamavid.runtime.video.decoding.Limits`.
    """

    connect_seconds: float = 10.0
    stall_seconds: float = 10.0
    give_up_seconds: float = 60.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 30.0
    settled_seconds: float = 10.0
    memory_bytes: int = MEMORY_BYTES
    least_memory_bytes: int = LEAST_MEMORY_BYTES


class LostError(Exception):
    """A connection is over: why, as an event."""

    def __init__(self, kind: EventKind, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class ClosedError(Exception):
    """The source was closed while we waited."""


class Link:
    """A process that connects; `opened` receives what ends it."""

    def __init__(
        self,
        address: Address,
        *,
        fps: float,
        limits: LiveLimits,
        closed: threading.Event,
        deadline: float,
        opened: ExitStack,
    ) -> None:
        """closed: set by who wants no more. deadline: by the monotonic clock, for whatever comes first.

        Raises:
            DeviceError: the process cannot be started.
        """
        self._address, self._limits, self._closed, self._deadline = address, limits, closed, deadline
        self._is_open = False
        request = {
            "kind": address.kind.value,
            "target": address.target,
            "fps": fps,
            "connect_seconds": limits.connect_seconds,
            "alive_seconds": min(1.0, limits.stall_seconds / 4),
        }
        files = {"pipe": STANDARD_INPUT} if address.kind is AddressKind.PIPE else {}
        memory_bytes = memory_limit(limits.memory_bytes, limits.least_memory_bytes)
        self._process = DecodeProcess(
            request, files, name=address.name, memory_bytes=memory_bytes, opened=opened
        )

    def messages(self) -> Iterator[dict[str, Any]]:
        """What happens, until the connection is over. Of a "frame" fetch `picture` before the next message.

        Raises:
            LostError: always, at the end.
            ClosedError: the source was closed.
            SourceError: trying again cannot help.
            DeviceError: this machine lacks something.
        """
        try:
            while True:
                message = self._next()
                self._judge(message)
                if message["what"] == "opened":
                    self._is_open = True
                else:
                    yield message
                if message["what"] == "end":
                    raise LostError(EventKind.LOST, "the other side ended the stream")
        except UnclearError as error:
            raise LostError(EventKind.CRASHED, "the decoder answers nonsense") from error

    def picture(self, message: dict[str, Any]) -> Picture:
        """RGB or planes."""
        try:
            return self._process.picture(message)
        except UnclearError as error:
            raise LostError(EventKind.CRASHED, "the decoder answers nonsense") from error

    def _next(self) -> dict[str, Any]:
        patience = self._patience()
        quiet = 0.0
        while (message := self._process.message(MESSAGES)) is None:
            if self._closed.is_set():
                raise ClosedError
            if self._process.wait(min(SLICE_SECONDS, patience)):
                if not self._process.hear():
                    raise self._death()
                continue
            quiet += min(SLICE_SECONDS, patience)
            if quiet > patience - 1e-6 or time.monotonic() > self._deadline:
                raise self._silence(quiet)
        return message

    def _patience(self) -> float:
        """How long nothing may be said."""
        if self._address.kind is AddressKind.PIPE:  # it is said each second that nothing comes
            return HANG_SECONDS
        if self._is_open:
            return self._limits.stall_seconds
        return self._limits.connect_seconds + STARTING_SECONDS

    def _judge(self, message: dict[str, Any]) -> None:
        """Raises what the message means, where that is an end; or that it means nothing."""
        what = message["what"]
        if what in ("error", "final", "missing"):
            texts = (self._address.without_secrets(message[key]) for key in FAILURE)
            given, expected, next_step = texts
            if what == "error":
                raise LostError(EventKind.LOST, str(SourceError(given, expected=expected)))
            kind = DeviceError if what == "missing" else SourceError
            raise kind(given, expected=expected, next_step=next_step)
        if what == "bug":
            last_line = message["trace"].strip().rpartition("\n")[2][:300]
            raise LostError(
                EventKind.CRASHED, self._address.without_secrets(f"the decoder failed: {last_line}")
            )
        counts = message.get("counts", [0, 0, 0])
        if len(counts) != 3 or not all(isinstance(count, int) and count >= 0 for count in counts):
            raise UnclearError

    def _silence(self, seconds: float) -> LostError:
        if self._is_open:
            return LostError(EventKind.STALLED, f"no picture came for {seconds:.3g} s")
        return LostError(EventKind.STALLED, f"no answer came for {seconds:.3g} s")

    def _death(self) -> LostError | DeviceError:
        code = self._process.exit_code(timeout_seconds=1.0)
        if code is None:
            return LostError(EventKind.CRASHED, "the decoder neither speaks nor ends")
        if code >= 0:
            return ended_by_itself(self._address.name, code)
        if -code in (signal.SIGKILL, signal.SIGTERM):
            reason = (
                f"the decoder was ended from outside ({signal_name(code)}), mostly because memory ran out"
            )
            return LostError(EventKind.CRASHED, reason)
        return LostError(EventKind.CRASHED, f"the decoder crashed ({signal_name(code)})")
