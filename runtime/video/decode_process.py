"""The process that decodes for this one, seen from here: started, told, heard, ended.

Takes a request and the open files it speaks of; gives lines of JSON and frames. What the lines mean is known
to who asked: `llamavid.runtime.video.decoding` for files. Why there is such a process, and what holds between
the two, says Note [A process to decode in] there.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

from llamavid.errors import DeviceError
from llamavid.memory import available_memory
from llamavid.runtime.video.frames import MAX_PIXELS, MAX_SIDE
from llamavid.runtime.video.picture_form import PictureMemory
from llamavid.runtime.yuv import Picture

SLOTS = 2
SLOT_BYTES = 3 * MAX_PIXELS  # only what frames really fill takes memory
MEMORY_BYTES, LEAST_MEMORY_BYTES = 4 * 2**30, 3 * 2**28  # Limits in `decoding` has the reasons
MAX_MESSAGE = 2**20  # bytes; a real one has a few hundred

# The path comes first: the current folder, which `-c` puts there, may hold anything.
BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv.pop().split('\\n'); "
    "from llamavid.runtime.video.decode_child import main; main()"
)

NUMBER = (int, float)
LARGEST = 2**53  # of all numbers that are told, which leaves out infinity and NaN
Fields = Mapping[str, "type | tuple[type, ...]"]
FAILURE: Fields = {"given": str, "expected": str, "next_step": str}  # what our errors say
# Where a frame's picture lies, and its form by `llamavid.runtime.video.picture_form`.
PICTURE: Fields = {
    "slot": int,
    "height": int,
    "width": int,
    "matrix": (str, type(None)),
    "full_range": bool,
}


class UnclearError(Exception):
    """What the other process says makes no sense: it is broken, or taken over."""


class DecodeProcess:
    """The child process, its two pipes and its memory file; `opened` receives what ends them.

    One thread at a time, but for `kill`.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        files: Mapping[str, int],
        *,
        name: str,
        memory_bytes: int,
        opened: ExitStack,
    ) -> None:
        """files: open descriptors; the child gets its own, their numbers under these keys of its request.

        Raises:
            DeviceError: the process cannot be started.
        """
        ring = opened.enter_context(os.fdopen(os.memfd_create("frames"), "w+b", buffering=0))
        self._ring = ring.fileno()
        with ExitStack() as passed:
            given = {**files, "ring": self._ring}
            numbers = {key: _above_standard(number, passed) for key, number in given.items()}
            self._process = _started(list(numbers.values()), name)
        opened.callback(self._end)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._replies = self._process.stdin, self._process.stdout
        # A `Popen` that is dropped while its process runs is kept by its module, and would keep the pipes.
        self._process.stdin = self._process.stdout = None
        self._unread, self._memory = b"", PictureMemory()
        place = {"slots": SLOTS, "slot_bytes": SLOT_BYTES, "memory_bytes": memory_bytes}
        self._order(json.dumps({"name": name, **request, **numbers, **place}).encode() + b"\n")

    def wait(self, seconds: float) -> bool:
        """True as soon as there is something to hear; False after `seconds`."""
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def hear(self) -> bool:
        """Takes what there is to hear, waiting for it; False when the process will say no more."""
        received = os.read(self._replies.fileno(), 2**16)
        self._unread += received
        if len(self._unread) > MAX_MESSAGE:
            raise UnclearError
        return bool(received)

    def message(self, messages: Mapping[str, Fields]) -> dict[str, Any] | None:
        """The next message of what was heard, one of `messages` with its fields; None when there is none."""
        line, end, rest = self._unread.partition(b"\n")
        if not end:
            return None
        self._unread = rest
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnclearError from error
        if not isinstance(message, dict) or not _has_fields(message, messages):
            raise UnclearError
        return message

    def picture(self, message: Mapping[str, Any]) -> Picture:
        """The frame that `message` tells of; its slot is free again."""
        height, width, slot = message["height"], message["width"], message["slot"]
        is_too_large = max(height, width) > MAX_SIDE or height * width > MAX_PIXELS
        if min(height, width) < 1 or is_too_large or not 0 <= slot < SLOTS:
            raise UnclearError
        try:
            picture, memory = self._memory.picture(height, width, message["matrix"], message["full_range"])
        except ValueError as error:
            raise UnclearError from error
        left, at = memory.data, slot * SLOT_BYTES
        while left:
            read = os.preadv(self._ring, [left], at)
            if read == 0:
                raise UnclearError
            left, at = left[read:], at + read
        self._order(b"+")
        return picture

    def exit_code(self, timeout_seconds: float) -> int | None:
        """How it ended, as `subprocess` says it; None when it did not within `timeout_seconds`."""
        try:
            return self._process.wait(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """From any thread: whoever listens hears the end."""
        self._process.kill()

    def _order(self, order: bytes) -> None:
        with suppress(BrokenPipeError):  # it is gone: the next message tells why
            self._orders.write(order)

    def _end(self) -> None:
        """Twice is fine, and at any moment."""
        self._process.kill()
        self._process.wait()
        self._orders.close()
        self._replies.close()


def signal_name(exit_code: int) -> str:
    """Of a process that a signal ended: `SIGSEGV` for -11."""
    return signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"


def ended_by_itself(name: str, code: int) -> DeviceError:
    """An end without a word is no file's or camera's doing: the process could not even start to read."""
    return DeviceError(
        f"the process that decodes {name!r} ended by itself (exit {code})",
        next_step="Run 'llamavid doctor' to see whether PyAV and NumPy load.",
    )


def memory_limit(memory_bytes: int, least_memory_bytes: int) -> int:
    """`memory_bytes`, or three quarters of what is free where that is less, but `least_memory_bytes`."""
    available = available_memory()
    return (
        memory_bytes if available is None else min(memory_bytes, max(least_memory_bytes, available * 3 // 4))
    )


def _has_fields(message: dict[str, Any], messages: Mapping[str, Fields]) -> bool:
    fields = messages.get(str(message.get("what")))
    if fields is None or not all(isinstance(message.get(key, ...), kind) for key, kind in fields.items()):
        return False
    numbers = [value for value in message.values() if isinstance(value, NUMBER)]
    return all(abs(number) <= LARGEST for number in numbers) and all(
        isinstance(note, str) for note in message.get("notes", ())
    )


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
