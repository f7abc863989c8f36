"""The process that decodes for another: Note [A process to decode in] in `llamavid.runtime.video.decoding`.

One file, or one connection to a live source. Takes a line of JSON on stdin, the request, then one byte for
each slot that is free again. Gives a line of JSON on stdout for each thing that happens, and the frames in
the memory file. It loads what decoding needs, and that only once its own limits are set.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamavid.runtime.video.frames import Source
    from llamavid.runtime.yuv import Picture

ALIVE_EVERY_SECONDS = 1.0


def main() -> None:
    """Never returns: what the decoders left behind cannot disturb an end at once."""
    # 1) The pipe is ours alone: what a library prints goes nowhere.
    replies = os.dup(1)
    os.dup2(2, 1)
    # 2) Bounded from here on.
    request = json.loads(_request_line())
    _set_limits(request["memory_bytes"], request["slots"] * request["slot_bytes"])
    # 3) The work.
    child = _Child(replies, request)
    try:
        if "kind" in request:
            from llamavid.runtime.live.connection import connect

            connect(request, child)
        else:
            child.decode(request["name"], request["fps"], request["file"], request["reader"])
    except BrokenPipeError:
        pass  # nobody reads on
    except BaseException as error:
        child.tell_failure(error)
    os._exit(0)


def _request_line() -> bytes:
    """Byte by byte: what follows the line is for another reader."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(0)
        line += byte
    return bytes(line)


def _set_limits(memory_bytes: int, file_bytes: int) -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        memory_bytes = min(memory_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most == resource.RLIM_INFINITY or most > file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # if the machine runs out, this process is the one to go


class _Child:
    """What is told, and the slots that may be written."""

    def __init__(self, replies: int, request: dict[str, Any]) -> None:
        self._replies, self._ring = replies, request["ring"]
        self._slots, self._slot_bytes, self._name = request["slots"], request["slot_bytes"], request["name"]
        self._free = threading.Semaphore(self._slots)
        self._told_at, self._notes_told, self._handed = time.monotonic(), 0, 0
        threading.Thread(target=self._listen, daemon=True).start()

    def decode(self, name: str, fps: float, file: int, library: str) -> None:
        from llamavid.runtime.video.frames import SourceKind
        from llamavid.runtime.video.sources import Reader, opened_file, source_here

        with ExitStack() as opened:
            reader = opened_file(file)
            opened.enter_context(reader)
            source = source_here(
                reader, name, fps=fps, opened=opened, reader=Reader(library), on_decoded=self._still_alive
            )
            self._tell_of(
                source,
                "head",
                is_video=source.kind is SourceKind.VIDEO,
                average_fps=source.average_fps,
                step=source.step,
                expected_frames=source.expected_frames,
            )
            for frame in source.frames():
                place = {"index": frame.index, "pts_seconds": frame.pts_seconds}
                self.hand_over(frame.picture, **place, notes=self._new_notes(source))
            self._tell_of(source, "end")

    def tell(self, what: str, **fields: Any) -> None:
        self._told_at = time.monotonic()
        left = json.dumps({"what": what, **fields}).encode() + b"\n"
        while left:
            left = left[os.write(self._replies, left) :]

    def hand_over(self, picture: Picture, **fields: Any) -> None:
        """A frame's picture, and what is told with it. Waits for a free slot."""
        from llamavid.runtime.video.picture_form import form_of, planes_of

        slot, self._handed = self._handed % self._slots, self._handed + 1
        self._free.acquire()
        at = slot * self._slot_bytes
        for plane in planes_of(picture):
            left = plane.reshape(-1).data
            while left:
                written = os.pwrite(self._ring, left, at)
                left, at = left[written:], at + written
        self.tell("frame", slot=slot, **form_of(picture), **fields)

    def tell_failure(self, error: BaseException) -> None:
        from llamavid.errors import DeviceError, SourceError
        from llamavid.runtime.live.connection import FinalError

        if isinstance(error, MemoryError):
            from llamavid.runtime.video.videos import out_of_memory

            error = out_of_memory(self._name)
        with suppress(BrokenPipeError):
            if isinstance(error, SourceError | DeviceError):
                is_missing, is_final = isinstance(error, DeviceError), isinstance(error, FinalError)
                what = "missing" if is_missing else "final" if is_final else "error"
                self.tell(what, given=error.given, expected=error.expected, next_step=error.next_step)
            else:
                self.tell("bug", trace="".join(traceback.format_exception(error))[-10_000:])

    def _still_alive(self) -> None:
        if time.monotonic() - self._told_at > ALIVE_EVERY_SECONDS:
            self.tell("alive")

    def _tell_of(self, source: Source, what: str, **fields: Any) -> None:
        self.tell(what, notes=self._new_notes(source), **fields)

    def _new_notes(self, source: Source) -> list[str]:
        """Those that came since the last time."""
        notes, self._notes_told = source.notes[self._notes_told :], len(source.notes)
        return notes

    def _listen(self) -> None:
        """Slots that are free again. The end of the pipe is the end of who asked, and of this process."""
        while freed := os.read(0, 64):
            self._free.release(len(freed))
        os._exit(0)
