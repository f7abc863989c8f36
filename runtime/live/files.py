"""A file or a folder of pictures as the source of a stream: it waits for who reads it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from types import TracebackType

from llamavid.errors import LlamaVidError
from llamavid.runtime.live.source import EventKind, OnEvent, SourceCounters, SourceEvent, ignore, read_before
from llamavid.runtime.video.frames import Frame, SourceKind
from llamavid.runtime.video.sources import open_source


class FileSource:
    """Frames as `open_source` gives them. Its notes are events; a file's damage is counted in a note only."""

    is_live = False

    def __init__(self, path: str | os.PathLike[str], *, fps: float = 1.0, on_event: OnEvent = ignore) -> None:
        """Raises what `open_source` does: the first frame is decoded here already."""
        self._source = open_source(path, fps=fps)
        self._is_folder = os.path.isdir(path)
        self.name, self.counters = self._source.path, SourceCounters()
        self._on_event = on_event
        self._at_seconds, self._notes_told, self._next_index = 0.0, 0, 0
        self._closed = self._was_read = False
        self._frames = self._told()

    @property
    def kind(self) -> SourceKind:
        return self._source.kind

    def frames(self) -> Iterator[Frame]:
        if self._was_read:
            raise read_before(self.name)
        self._was_read = True
        return self._frames

    def close(self) -> None:
        self._closed = True
        self._source.interrupt()
        try:
            self._frames.close()
        except ValueError:
            return  # it is running in another thread, and ends there
        self._source.close()

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _told(self) -> Generator[Frame, None, None]:
        try:
            with self._source:
                yield from self._counted()
        except LlamaVidError:
            if not self._closed:
                raise

    def _counted(self) -> Iterator[Frame]:
        size = None
        for frame in self._source.frames():
            self._count_unread(frame.index)
            self._at_seconds, self._next_index = frame.pts_seconds, frame.index + 1
            self._tell_notes()
            if size not in (None, frame.size):
                self.counters.size_changes += 1
                width, height = frame.size
                self._tell(EventKind.SIZE, f"Frames are {width} x {height} pixels now.")
            size = frame.size
            self.counters.frames += 1
            yield frame
        self._count_unread(self._source.expected_frames or 0)
        self._tell_notes()
        self._tell(EventKind.ENDED, f"It ended after {self.counters.frames} frames.")

    def _count_unread(self, index: int) -> None:
        """Only a folder's frames are without gaps, but for pictures that cannot be read."""
        if self._is_folder:
            self.counters.damaged += index - self._next_index

    def _tell_notes(self) -> None:
        notes, self._notes_told = self._source.notes[self._notes_told :], len(self._source.notes)
        for note in notes:
            self._tell(EventKind.NOTE, note)

    def _tell(self, kind: EventKind, text: str) -> None:
        self._on_event(SourceEvent(kind, text, self._at_seconds))
