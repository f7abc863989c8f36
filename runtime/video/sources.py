"""Where frames come from: one local video or picture file, or a folder of pictures, decoded frame by frame.

Takes a path; gives `Frame`s, upright and with the stream's own times: the ones that Note [Which frames] in
`llamavid.runtime.video.videos` chooses, or all of a folder's pictures. Knows nothing about the model's pixels
or about questions; cameras and streams are in `llamavid.runtime.live`.

Note [Untrusted files]
    FFmpeg gets an open regular file and never its name: no name is a protocol or a pattern. It may use a
    closed list of containers, without playlists and others that lead to further files (nor the one that plays
    plain text as a video), and no protocol to open more. Pillow's list is closed too: some of its formats
    start other programs. Sizes are checked before pixels are made. Memory is one frame and those inside the
    decoder, whatever the length. And it all runs in a process of its own, whose time and memory are bounded:
    Note [A process to decode in] in `llamavid.runtime.video.decoding`. What is read is the same in either.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, BinaryIO

from llamavid.errors import DeviceError
from llamavid.runtime.video.frames import Source, check_fps, unreadable

if TYPE_CHECKING:
    from llamavid.runtime.video.folders import OpenFolder

# The decoders are imported where they run: a process that leaves decoding to another does not wait for them.

NOT_ISOLATED = (
    "This system cannot share memory without a name: the file was decoded in this process, "
    "which a hostile one could crash."
)


class Reader(Enum):
    """Which library decodes videos."""

    PYAV = "pyav"
    DECORD = "decord"  # `llamavid.runtime.video.decord_videos` says what for


def open_source(
    path: str | os.PathLike[str], *, fps: float = 1.0, isolated: bool = True, reader: Reader = Reader.PYAV
) -> Source:
    """Open a local video or picture, known by its content, or a folder of pictures.

    The first frame is decoded here already.

    fps: frames to keep for each second of video, by Note [Which frames]; of a folder the frames that are a
        second, by Note [Frames of a folder] in `llamavid.runtime.video.folders`.
    isolated: decode in a process of its own, by Note [Untrusted files]. It takes about 0.15 s to start: for
        thousands of short files of one's own, False is quicker. Frames, times and errors are the same.
    reader: for videos; pictures are always read by Pillow.

    Raises:
        UsageError: `fps` is not a number above 0.
        SourceError: there is no such regular file or folder, or no frame can be decoded from it.
        DeviceError: the process to decode in cannot be started, or `reader` is not installed.
    """
    check_fps(fps)
    if reader is Reader.DECORD and find_spec("decord") is None:
        raise DeviceError("decord2 is not installed", next_step="pip install 'llamavid[decord]'.")
    name = os.fspath(path)
    with ExitStack() as opened:
        file = opened_file(_open_descriptor(name))
        opened.enter_context(file)
        source = _source(file, name, fps=fps, isolated=isolated, reader=reader, opened=opened)
        source._opened = opened.pop_all()
    return source


def opened_file(descriptor: int) -> BinaryIO | OpenFolder:
    """Takes the descriptor over."""
    from llamavid.runtime.video.folders import OpenFolder

    is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    return OpenFolder(descriptor) if is_folder else os.fdopen(descriptor, "rb")


def source_here(
    file: BinaryIO | OpenFolder,
    name: str,
    *,
    fps: float,
    opened: ExitStack,
    reader: Reader = Reader.PYAV,
    on_decoded: Callable[[], None] = lambda: None,
) -> Source:
    """An open file, decoded in this process. `opened` receives what has to be closed.

    on_decoded: called after each decoded frame of a video, kept or not.
    """
    from llamavid.runtime.video.folders import OpenFolder, folder_source
    from llamavid.runtime.video.pictures import picture_source
    from llamavid.runtime.video.videos import video_source

    if isinstance(file, OpenFolder):
        return folder_source(file, name, fps=fps, opened=opened, on_decoded=on_decoded)
    if (picture := picture_source(file, name)) is not None:
        return picture
    if reader is Reader.DECORD:
        from llamavid.runtime.video.decord_videos import decord_source

        return decord_source(file, name, fps=fps, opened=opened, on_decoded=on_decoded)
    return video_source(file, name, fps=fps, opened=opened, on_decoded=on_decoded)


def _source(
    file: BinaryIO | OpenFolder,
    name: str,
    *,
    fps: float,
    isolated: bool,
    reader: Reader,
    opened: ExitStack,
) -> Source:
    if not isolated:
        return source_here(file, name, fps=fps, reader=reader, opened=opened)
    from llamavid.runtime.video.decoding import can_isolate, source_elsewhere

    if can_isolate():
        return source_elsewhere(file, name, fps=fps, reader=reader.value, opened=opened)
    source = source_here(file, name, fps=fps, reader=reader, opened=opened)
    source.notes.insert(0, NOT_ISOLATED)
    return source


def _open_descriptor(name: str) -> int:
    """Opened first and checked then: what was checked is what is read. Opening must not wait on a pipe."""
    try:
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if "://" in name:
            raise unreadable(name, "is an address", next_step="Download it first.") from error
        raise unreadable(name, f"cannot be opened ({getattr(error, 'strerror', error)})") from error
    status = os.fstat(descriptor)
    is_file = stat.S_ISREG(status.st_mode)
    if not (stat.S_ISDIR(status.st_mode) or (is_file and status.st_size)):
        os.close(descriptor)
        raise unreadable(name, "is an empty file" if is_file else "is not a file")
    return descriptor
