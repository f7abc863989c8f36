"""Where frames come from: one local video or picture file, decoded frame by frame.

Takes a path; gives `Frame`s, upright RGB with the stream's own times, the ones that Note [Which frames] in
`llamavid.runtime.videos` chooses. Knows nothing about the model's pixels, about questions, or about cameras.

Note [Untrusted files]
    FFmpeg gets an open regular file and never its name: no name is a protocol or a pattern. It may use a
    closed list of containers, without playlists and others that lead to further files (nor the one that plays
    plain text as a video), and no protocol to open more. Pillow's list is closed too: some of its formats
    start other programs. Sizes are checked before pixels are made. Memory is one frame and those inside the
    decoder, whatever the length. And it all runs in a process of its own, whose time and memory are bounded:
    Note [A process to decode in] in `llamavid.runtime.decoding`. What is read is the same in either process.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO

from llamavid.errors import UsageError
from llamavid.runtime.frames import Source, unreadable

# The decoders are imported where they run: a process that leaves decoding to another does not wait for them.

NOT_ISOLATED = (
    "This system cannot share memory without a name: the file was decoded in this process, "
    "which a hostile one could crash."
)


def open_source(path: str | os.PathLike[str], *, fps: float = 1.0, isolated: bool = True) -> Source:
    """Open a local video or picture, known by its content. The first frame is decoded here already.

    fps: frames to keep for each second of video, by Note [Which frames].
    isolated: decode in a process of its own, by Note [Untrusted files]. It takes about 0.15 s to start: for
        thousands of short files of one's own, False is quicker. Frames, times and errors are the same.

    Raises:
        UsageError: `fps` is not a number above 0.
        SourceError: there is no such regular file, or no frame can be decoded from it.
        DeviceError: the process to decode in cannot be started.
    """
    if not (fps > 0 and math.isfinite(fps)):
        raise UsageError(f"fps is {fps}", expected="a number above 0", next_step="Try 1.")
    name = os.fspath(path)
    with ExitStack() as opened:
        file = opened.enter_context(_open_regular_file(name))
        source = _source(file, name, fps=fps, isolated=isolated, opened=opened)
        source._opened = opened.pop_all()
    return source


def source_here(
    file: BinaryIO,
    name: str,
    *,
    fps: float,
    opened: ExitStack,
    on_decoded: Callable[[], None] = lambda: None,
) -> Source:
    """An open file, decoded in this process. `opened` receives what has to be closed.

    on_decoded: called after each decoded frame of a video, kept or not.
    """
    from llamavid.runtime.pictures import picture_source
    from llamavid.runtime.videos import video_source

    picture = picture_source(file, name)
    return picture or video_source(file, name, fps=fps, opened=opened, on_decoded=on_decoded)


def _source(file: BinaryIO, name: str, *, fps: float, isolated: bool, opened: ExitStack) -> Source:
    if not isolated:
        return source_here(file, name, fps=fps, opened=opened)
    from llamavid.runtime.decoding import can_isolate, source_elsewhere

    if can_isolate():
        return source_elsewhere(file, name, fps=fps, opened=opened)
    source = source_here(file, name, fps=fps, opened=opened)
    source.notes.insert(0, NOT_ISOLATED)
    return source


def _open_regular_file(name: str) -> BinaryIO:
    """Opened first and checked then: what was checked is what is read. Opening must not wait on a pipe."""
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if "://" in name:
            raise unreadable(name, "is an address", next_step="Download it first.") from error
        raise unreadable(name, f"cannot be opened ({getattr(error, 'strerror', error)})") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(descriptor)
        raise unreadable(name, "is an empty file" if stat.S_ISREG(status.st_mode) else "is not a file")
    return os.fdopen(descriptor, "rb")
