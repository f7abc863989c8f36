"""An open file as a source whose frames another process decodes. This side: start, read, judge, end.

Gives the frames, times, notes and errors of `source_here`, bit for bit. Knows nothing of how a file is
decoded: neither FFmpeg nor Pillow is loaded here.

Note [A process to decode in]
    Decoders are large and written in C: a damaged or hostile file may crash them, hang them, or make them
    take all memory. So they run in a fresh Python (never a fork: this process may have threads and CUDA),
    `llamavid.runtime.decode_child`, and whatever happens there is one `SourceError` here.

    Frames come through a memory file without a name, so nothing is left behind whoever dies: SLOTS frames
    long, written and read with plain file calls. (A mapping would end this process too, by SIGBUS, if the
    other one cut the file short.) The child waits while all slots are full; a byte gives one back. So it
    works ahead by SLOTS frames, and no more. Messages are lines of JSON: the child's words are not trusted.

    The limits are in `Limits`. The child cannot outlive its pipe: without a reader, it ends itself.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from llamavid.errors import DeviceError, SourceError
from llamavid.runtime.frames import MAX_PIXELS, Frame, Source, SourceKind, unreadable
from llamavid.runtime.memory import available_memory

SLOTS = 2
SLOT_BYTES = 3 * MAX_PIXELS  # only what frames really fill takes memory
QUIET_SLICES = 30  # a stall is as many quiet polls: time in which we ourselves were stopped is one of them
MAX_MESSAGE = 2**20  # bytes; a real one has a few hundred

# The path comes first: the current folder, which `-c` puts there, may hold anything.
BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "
    "from llamavid.runtime.decode_child import main; main()"
)
CONVERT = "Convert it to MP4, or leave it out."


NUMBER = (int, float)
MESSAGES: dict[str, dict[str, type | tuple[type, ...]]] = {
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
        "slot": int,
        "height": int,
        "width": int,
    },
    "end": {"notes": list},
    "alive": {},  # frames are decoded, none of them kept
    "error": {"given": str, "expected": str, "next_step": str},
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
    memory_bytes: int = 4 * 2**30
    least_memory_bytes: int = 3 * 2**28


def can_isolate() -> bool:
    """Linux has memory files; a Python inside another program may have no executable to start."""
    return hasattr(os, "memfd_create") and bool(sys.executable)


def source_elsewhere(
    file: BinaryIO, name: str, *, fps: float, opened: ExitStack, limits: Limits | None = None
) -> Source:
    """`source_here` in a process of its own. `opened` receives what ends it.

    Raises:
        SourceError: the file cannot be decoded within `limits`.
        DeviceError: the process cannot be started.
    """
    decoder = _Decoder(file, name, fps, limits or Limits(), opened)
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
    )


def _frames(decoder: _Decoder, notes: list[str]) -> Generator[Frame, None, None]:
    while True:
        message = decoder.message("frame", "end")
        notes += message["notes"]
        if message["what"] == "end":
            return
        yield Frame(message["index"], message["pts_seconds"], decoder.rgb(message))


class _Decoder:
    """The child process, its two pipes and its memory file; `opened` receives what ends them."""

    def __init__(self, file: BinaryIO, name: str, fps: float, limits: Limits, opened: ExitStack) -> None:
        self._name, self._limits = name, limits
        self._ring = opened.enter_context(os.fdopen(os.memfd_create("frames"), "w+b", buffering=0))
        with ExitStack() as passed:
            descriptors = [_above_standard(one.fileno(), passed) for one in (file, self._ring)]
            self._process = _started(descriptors, name)
        opened.callback(self._end)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._replies = self._process.stdin, self._process.stdout
        # A `Popen` that is dropped while its process runs is kept by its module, and would keep the pipes.
        self._process.stdin = self._process.stdout = None
        self._unread = b""
        request = {"name": name, "fps": fps, **dict(zip(("file", "ring"), descriptors, strict=True))}
        request |= {"slots": SLOTS, "slot_bytes": SLOT_BYTES, "memory_bytes": _memory_limit(limits)}
        self._order(json.dumps(request).encode() + b"\n")

    def message(self, *expected: str) -> dict[str, Any]:
        """The next message. Raises the child's error, or why there is none."""
        while (message := self._parsed(self._line()))["what"] == "alive":
            pass
        if message["what"] == "error":
            given, expected_file, next_step = (message[key] for key in ("given", "expected", "next_step"))
            raise SourceError(given, expected=expected_file, next_step=next_step)
        if message["what"] == "bug":
            raise RuntimeError(f"decoding {self._name!r} failed:\n{message['trace']}")
        if message["what"] not in expected:
            raise self.unclear()
        return message

    def rgb(self, message: dict[str, Any]) -> np.ndarray:
        """The frame that `message` tells of, uint8 [H, W, 3]; its slot is free again."""
        height, width, slot = message["height"], message["width"], message["slot"]
        if min(height, width) < 1 or height * width > MAX_PIXELS or not 0 <= slot < SLOTS:
            raise self.unclear()
        rgb = np.empty((height, width, 3), np.uint8)
        left, at = rgb.reshape(-1).data, slot * SLOT_BYTES
        while left:
            read = os.preadv(self._ring.fileno(), [left], at)
            if read == 0:
                raise self.unclear()
            left, at = left[read:], at + read
        self._order(b"+")
        return rgb

    def _order(self, order: bytes) -> None:
        with suppress(BrokenPipeError):  # it is gone: the next message tells why
            self._orders.write(order)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise self.unclear() from error
        if not isinstance(message, dict) or not _has_fields(message):
            raise self.unclear()
        return message

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            self._wait()
            received = os.read(self._replies.fileno(), 2**16)
            if not received:
                raise self._death()
            self._unread += received
            if len(self._unread) > MAX_MESSAGE:
                raise self.unclear()
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _wait(self) -> None:
        """Until there is something to read."""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        for _ in range(QUIET_SLICES):
            if poll.poll(1000 * self._limits.stall_seconds / QUIET_SLICES):
                return
        raise self._hang()

    def _death(self) -> SourceError | DeviceError:
        """Why there is nothing more to read."""
        try:
            code = self._process.wait(timeout=self._limits.stall_seconds)
        except subprocess.TimeoutExpired:
            return self._hang()
        if code >= 0:
            return DeviceError(
                f"the process that decodes {self._name!r} ended by itself (exit {code})",
                next_step="Run 'llamavid doctor' to see whether PyAV and NumPy load.",
            )
        fate = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
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

    def _end(self) -> None:
        """Twice is fine, and at any moment."""
        self._process.kill()
        self._process.wait()
        self._orders.close()
        self._replies.close()


def _has_fields(message: dict[str, Any]) -> bool:
    fields = MESSAGES.get(str(message.get("what")))
    if fields is None or not all(isinstance(message.get(key, ...), kind) for key, kind in fields.items()):
        return False
    return all(isinstance(note, str) for note in message.get("notes", ()))


def _above_standard(descriptor: int, opened: ExitStack) -> int:
    """A copy that is not 0, 1 or 2: in a service these may be free, and in the child they are the pipes."""
    import fcntl  # not on every system that imports this module

    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    opened.callback(os.close, copy)
    return copy


def _started(descriptors: list[int], name: str) -> subprocess.Popen[bytes]:
    """In a session of its own: the terminal's Ctrl-C is for this process, which then ends the other."""
    try:
        return subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, "\n".join(map(str, sys.path))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a crash has much to say, and the decoders too
            bufsize=0,
            pass_fds=descriptors,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # no algebra there: fewer threads, sooner ready
        )
    except OSError as error:
        problem = f"no process to decode {name!r} in can be started ({error.strerror})"
        raise DeviceError(problem, next_step="Free some memory, or allow more processes.") from error


def _memory_limit(limits: Limits) -> int:
    available = available_memory()
    if available is None:
        return limits.memory_bytes
    return min(limits.memory_bytes, max(limits.least_memory_bytes, available * 3 // 4))
