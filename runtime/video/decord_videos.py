"""A video by decord2, the reference's reader in its maintained fork: for comparisons. PyAV is the one to use.

Takes and gives what `llamavid.runtime.video.videos` does, by the same Note [Which frames]. That one looks at
the file first, with its lists: decord has none, and opens whatever its FFmpeg knows. Of clips stored turned
by a quarter or mirrored decord gives garbage or the mirror's picture: these are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from itertools import chain
from typing import Any, BinaryIO

import numpy as np

from llamavid.errors import SourceError
from llamavid.runtime.video.frames import TURNED, Frame, Source, SourceKind, unreadable
from llamavid.runtime.video.videos import MAX_FRAMES, UNEVEN, first_picture_matrix

AS_STORED, HALF_TURN = (1, 0, 0, 1), (-1, 0, 0, -1)
WITHOUT_DECORD = "Read it without decord."


def decord_source(
    file: BinaryIO,
    name: str,
    *,
    fps: float,
    opened: ExitStack,
    on_decoded: Callable[[], None] = lambda: None,
) -> Source:
    matrix = first_picture_matrix(file, name)
    if matrix not in (AS_STORED, HALF_TURN):
        raise unreadable(
            name, "is stored turned or mirrored, as decord cannot read it", next_step=WITHOUT_DECORD
        )
    reader = _reader(file, name)
    average_fps = float(reader.get_avg_fps())
    step = max(1, round(min(average_fps / fps, float(MAX_FRAMES))))
    seconds = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0].astype(np.float64)
    notes = [TURNED] if matrix == HALF_TURN else []
    if np.any(np.abs(np.diff(seconds) * average_fps - 1) > 0.5):
        notes.append(UNEVEN)
    frames = _frames(reader, name, step, seconds - seconds[0], on_decoded)
    opened.callback(frames.close)
    first = next(frames)
    expected = -(-len(reader) // step)
    return Source(name, SourceKind.VIDEO, average_fps, step, expected, notes, chain([first], frames))


def _reader(file: BinaryIO, name: str) -> Any:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    try:
        # The open file by its number: no name is a protocol or a pattern.
        reader = decord.VideoReader(f"/proc/self/fd/{file.fileno()}", ctx=decord.cpu(0))
    except (RuntimeError, decord.DECORDError) as error:
        raise unreadable(name, "cannot be opened by decord", next_step=WITHOUT_DECORD) from error
    if len(reader) == 0:
        raise unreadable(name, "holds no frame that decord can decode", next_step=WITHOUT_DECORD)
    return reader


def _frames(
    reader: Any, name: str, step: int, seconds: np.ndarray, on_decoded: Callable[[], None]
) -> Generator[Frame, None, None]:
    for index in range(0, len(reader), step):
        try:
            rgb = reader[index].asnumpy()
        except Exception as error:  # decord has its own error beside RuntimeError and IndexError
            raise SourceError(
                f"{name!r} cannot be read by decord at frame {index}", next_step=WITHOUT_DECORD
            ) from error
        if rgb.ndim != 3 or rgb.shape[2] != 3:
            raise unreadable(name, f"gives garbage by decord at frame {index}", next_step=WITHOUT_DECORD)
        on_decoded()
        yield Frame(index, float(seconds[index]), np.ascontiguousarray(rgb))
