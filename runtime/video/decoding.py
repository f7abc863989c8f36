"""An open file as a source whose frames another process decodes. This side: start, read, judge, end.

Gives the frames, times, notes and errors of `source_here`, bit for bit. Knows nothing of how a file is
decoded: neither FFmpeg nor Pillow is loaded here.

Note [A process to decode in]
    Decoders are large and written in C: a damaged or hostile file may crash them, hang them, or make them
    take all memory. So they run in a fresh Python (never a fork: this process may have threads and CUDA),
    `llamavid.runtime.video.decode_child`, and whatever happens there is one `SourceError` here.

    Frames come through a memory file without a name, so nothing is left behind whoever dies: SLOTS frames
    long, RGB or planes, written and read with plain file calls. (A mapping would end this process too, by
    SIGBUS, if the other one cut the file short.) The child waits while all slots are full; a byte gives one
    back. So it works ahead by SLOTS frames, and no more. Messages are lines of JSON: the child's words are
    not trusted.

    The limits are in `Limits`. The child cannot outlive its pipe: without a reader, it ends itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO

from llamavid.errors import DeviceError, SourceError
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
from llamavid.runtime.video.frames import Frame, Source, SourceKind, unreadable
from llamavid.runtime.yuv import Picture

if TYPE_CHECKING:
    from llamavid.runtime.video.folders import OpenFolder

QUIET_SLICES = 30  # a stall is as many quiet polls: time in which we ourselves were stopped is one of them
CONVERT = "Convert it to MP4, or leave it out."

MESSAGES: dict[str, Fields] = {
    "head": {
        "notes": list,
        "is_video": bool,
        "average_fps": NUMBER,
        "step": int,
        "expected_frames": (int, type(None)),
    },
    "frame": {
        "notes": list,
        "index": int,
        "pts_seconds": NUMBER,
        **PICTURE,
    },
    "end": {"notes": list},
    "alive": {},  # frames are decoded, none of them kept
    "error": FAILURE,
    "missing": FAILURE,  # this machine lacks something
    "bug": {"trace": str},
}


@dataclass(frozen=True)
class Limits:
    """What one file may take.

    stall_seconds: time without a decoded frame, kept or not. Counted only while we wait for one.
    memory_bytes: the child's private memory (RLIMIT_DATA: the heap and stacks, not the libraries). A decoder
        holds a frame for each of its threads, of which FFmpeg starts at most sixteen: then HD takes 0.5 GB
        with the stacks, 4K 0.9 GB, and 8K at 10 bits 3.0 GB. Larger frames may need to be scaled down.
    least_memory_bytes: on a small board the limit is three quarters of what is free, but at least this.
    """

    stall_seconds: float = 30.0
    memory_bytes: int = MEMORY_BYTES
    least_memory_bytes: int = LEAST_MEMORY_BYTES


def can_isolate() -> bool:
    """Linux has memory files; a Python inside another program may have no executable to start."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


def source_elsewhere(
    file: BinaryIO | OpenFolder,
    name: str,
    *,
    fps: float,
    opened: ExitStack,
    reader: str = "pyav",
    limits: Limits | None = None,
) -> Source:
    """`source_here` in a process of its own. `opened` receives what ends it.

    reader: value of a `Reader` of `llamavid.runtime.video.sources`.

    Raises:
        SourceError: the file cannot be decoded within `limits`.
        DeviceError: the process cannot be started.
    """
    decoder = _Decoder(file, name, {"fps": fps, "reader": reader}, limits or Limits(), opened)
    head = decoder.message("head")
    notes: list[str] = head["notes"]
    frames = _frames(decoder, notes)
    opened.callback(frames.close)  # first of all: a generator must not read from a closed pipe
    first = next(frames, None)
    if first is None:
        raise decoder.unclear()
    return Source(
        name,
        SourceKind.VIDEO if head["is_video"] else SourceKind.PICTURE,
        head["average_fps"],
        head["step"],
        head["expected_frames"],
        notes,
        chain([first], frames),
        _interrupt=decoder.kill,
    )


def _frames(decoder: _Decoder, notes: list[str]) -> Generator[Frame, None, None]:
    while True:
        message = decoder.message("frame", "end")
        notes += message["notes"]
        if message["what"] == "end":
            return
        yield Frame(message["index"], message["pts_seconds"], decoder.picture(message))


class _Decoder:
    """What a file's process says, and what it means when it says nothing."""

    def __init__(
        self,
        file: BinaryIO | OpenFolder,
        name: str,
        request: dict[str, Any],
        limits: Limits,
        opened: ExitStack,
    ) -> None:
        self._name, self._limits = name, limits
        memory_bytes = memory_limit(limits.memory_bytes, limits.least_memory_bytes)
        self._process = DecodeProcess(
            request, {"file": file.fileno()}, name=name, memory_bytes=memory_bytes, opened=opened
        )
        self.kill = self._process.kill

    def message(self, *expected: str) -> dict[str, Any]:
        """The next message. Raises the child's error, or why there is none."""
        while (message := self._next_message())["what"] == "alive":
            pass
        if message["what"] in ("error", "missing"):
            given, right, next_step = (message[key] for key in ("given", "expected", "next_step"))
            error = SourceError if message["what"] == "error" else DeviceError
            raise error(given, expected=right, next_step=next_step)
        if message["what"] == "bug":
            raise RuntimeError(f"decoding {self._name!r} failed:\n{message['trace']}")
        if message["what"] not in expected:
            raise self.unclear()
        return message

    def picture(self, message: dict[str, Any]) -> Picture:
        try:
            return self._process.picture(message)
        except UnclearError as error:
            raise self.unclear() from error

    def _next_message(self) -> dict[str, Any]:
        try:
            while (message := self._process.message(MESSAGES)) is None:
                self._wait()
                if not self._process.hear():
                    raise self._death()
        except UnclearError as error:
            raise self.unclear() from error
        return message

    def _wait(self) -> None:
        """Until there is something to read."""
        for _ in range(QUIET_SLICES):
            if self._process.wait(self._limits.stall_seconds / QUIET_SLICES):
                return
        raise self._hang()

    def _death(self) -> SourceError | DeviceError:
        """Why there is nothing more to read."""
        code = self._process.exit_code(self._limits.stall_seconds)
        if code is None:
            return self._hang()
        if code >= 0:
            return ended_by_itself(self._name, code)
        fate = signal_name(code)
        if -code in (signal.SIGKILL, signal.SIGTERM):
            problem = f"could not be decoded: the decoder was ended from outside ({fate})"
            next_step = "Mostly memory ran out: free some, and try again."
            return unreadable(self._name, problem, next_step=next_step)
        return unreadable(self._name, f"makes the decoder crash ({fate})", next_step=CONVERT)

    def _hang(self) -> SourceError:
        problem = f"makes the decoder hang: no frame came for {self._limits.stall_seconds:g} s"
        return unreadable(self._name, problem, next_step=CONVERT)

    def unclear(self) -> SourceError:
        return unreadable(self._name, "makes the decoder answer nonsense", next_step=CONVERT)
