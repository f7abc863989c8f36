"""A folder of pictures as a source of frames, in the order that a person would put them in.

Note [Frames of a folder]
    Every picture is a frame, `10.png` after `9.png`: picture i, counted from 0, is shown at i / fps. Which
    files are pictures, their names' endings say. A picture that cannot be read keeps its place and its time,
    and is named in a note, as are other files. Hidden files and folders inside are none of ours.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Generator
from contextlib import ExitStack
from itertools import chain

from llamavid.errors import SourceError
from llamavid.runtime.video.frames import Frame, Source, SourceKind, unreadable
from llamavid.runtime.video.pictures import picture_source

# Without ".gif": an animation is a video. Endings of what `llamavid.runtime.video.pictures` reads.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
MAX_PICTURES = 10**6  # a folder is listed whole before the first frame
NAMED = 3  # names in a note

OPENING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # no waiting for a pipe


class OpenFolder:
    """A folder's open descriptor, which it owns: the folder stays the one that was checked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def folder_source(
    folder: OpenFolder,
    name: str,
    *,
    fps: float,
    opened: ExitStack,
    on_decoded: Callable[[], None] = lambda: None,
) -> Source:
    """A folder as a video of `fps` frames a second. `on_decoded` is called for each picture, read or not.

    Raises:
        SourceError: none of its files is a picture that can be read.
    """
    notes: list[str] = []
    pictures = _pictures(folder.fileno(), name, notes)
    frames = _frames(folder.fileno(), pictures, fps, notes, on_decoded)
    opened.callback(frames.close)
    first = next(frames, None)
    if first is None:
        why = f" ({notes[-1].rstrip('.')})" if notes else ""
        raise unreadable(name, f"is a folder without a picture that can be read{why}")
    return Source(name, SourceKind.VIDEO, fps, 1, len(pictures), notes, chain([first], frames))


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """The key that puts `frame9` before `frame10`. Names that differ never have the same key."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _pictures(folder: int, name: str, notes: list[str]) -> list[str]:
    """File names in natural order; those that are no pictures are noted."""
    pictures: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_dir():
                continue
            (pictures if entry.name.lower().endswith(ENDINGS) else others).append(entry.name)
            if len(pictures) + len(others) > MAX_PICTURES:
                raise unreadable(
                    name, f"is a folder of more than {MAX_PICTURES} files", next_step="Divide it."
                )
    if others:
        notes.append(f"{_named(sorted(others, key=natural_order))} left out: not pictures by their names.")
    return sorted(pictures, key=natural_order)


def _frames(
    folder: int, pictures: list[str], fps: float, notes: list[str], on_decoded: Callable[[], None]
) -> Generator[Frame, None, None]:
    unread: list[str] = []
    for index, name in enumerate(pictures):
        try:
            frame = _picture(folder, name)
        except (SourceError, OSError) as error:
            unread.append(name)
            if len(unread) <= NAMED:
                said = error.given if isinstance(error, SourceError) else f"{name!r} {error.strerror}"
                notes.append(f"Picture {index} was left out: {said}.")
        else:
            yield Frame(index, index / fps, frame.rgb)
        finally:
            on_decoded()
    if unread:
        notes.append(f"{_named(unread)} of {len(pictures)} pictures could not be read and left out.")


def _picture(folder: int, name: str) -> Frame:
    with os.fdopen(os.open(name, OPENING, dir_fd=folder), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise unreadable(name, "is not a file")
        source = picture_source(file, name)
        if source is None:
            raise unreadable(name, "is not a picture, or an animation")
        return next(source.frames())


def _named(names: list[str]) -> str:
    """`2 files (a.txt, b.txt)`: how many, and the first of them."""
    listed = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{len(names)} file{'s' if len(names) > 1 else ''} ({listed})"
