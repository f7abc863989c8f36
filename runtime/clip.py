"""From a file to the encoder's input: the frames that the reference would look at, prepared as it would.

What answering, training and calibration share, so that all three see the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamavid.config import Preprocessing
from llamavid.runtime.pixels import pad_to_square
from llamavid.runtime.video.folders import ENDINGS
from llamavid.runtime.video.frames import Frame, SourceKind
from llamavid.runtime.video.sources import open_source
from llamavid.runtime.yuv import pixels_from_pictures

# What names of files in a folder end in that can be read; a file named by itself is known by its content.
VIDEO_ENDINGS = (
    *(
        ".mp4",
        ".m4v",
        ".mov",
        ".3gp",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".vob",
    ),
    *(".flv", ".ogv", ".wmv", ".asf", ".ivf", ".y4m", ".h264", ".264", ".hevc", ".265", ".obu"),
    *(".gif", ".apng"),
)
CLIP_ENDINGS = VIDEO_ENDINGS + ENDINGS
LOOKED_AT_SECONDS = (
    600  # of a clip whose frames are spread: an hour of film would be decoded for four of them
)


def clip_pixels(
    path: Path | str, preprocessing: Preprocessing, *, fps: float = 1.0
) -> npt.NDArray[np.float32]:
    """A whole short clip or picture -> float32 [T, 3, S, S].

    Raises:
        SourceError: the file cannot be read.
    """
    with open_source(path, fps=fps, isolated=False) as source:  # thousands of short files of one's own
        return np.concatenate(
            [frame_pixels([frame], source.kind, preprocessing) for frame in source.frames()]
        )


def first_pixels(
    paths: Sequence[Path], preprocessing: Preprocessing, *, frames: int, fps: float = 1.0
) -> npt.NDArray[np.float32]:
    """The first `frames` of every clip -> float32 [T, 3, S, S]; what comes after is not decoded.

    Raises:
        SourceError: a file cannot be read.
    """
    found = []
    for path in paths:
        with open_source(path, fps=fps) as source:
            for frame in islice(source.frames(), frames):
                found.append(frame_pixels([frame], source.kind, preprocessing))
    return np.concatenate(found)


def spread_pixels(
    path: Path, preprocessing: Preprocessing, *, frames: int, isolated: bool = True
) -> npt.NDArray[np.float32]:
    """`frames` of a clip, evenly spread in time -> float32 [n, 3, S, S]; n is less where the clip has less.

    Of a clip longer than `LOOKED_AT_SECONDS`, of its beginning.

    Raises:
        SourceError: the file cannot be read.
    """
    fps = 1.0
    while True:
        with open_source(path, fps=fps, isolated=isolated) as source:
            shown = takewhile(lambda frame: frame.pts_seconds < LOOKED_AT_SECONDS, source.frames())
            found = evenly(shown, frames)
            if len(found) >= frames or source.step == 1 or source.kind is SourceKind.PICTURE:
                return frame_pixels(found, source.kind, preprocessing)
            fps = source.average_fps  # it is short: all of its frames


def evenly(frames: Iterable[Frame], count: int) -> list[Frame]:
    """`count` of them, each near the middle of its share; all where there are no more.

    Holds at most four times as many, however long the clip.
    """
    kept: list[Frame] = []
    every = 1
    for index, frame in enumerate(frames):
        if index % every == 0:
            kept.append(frame)
        if len(kept) == 4 * count + 1:
            kept, every = kept[::2], 2 * every
    shares = min(count, len(kept))
    return [kept[(2 * share + 1) * len(kept) // (2 * shares)] for share in range(shares)]


def is_padded(kind: SourceKind, preprocessing: Preprocessing) -> bool:
    """Whether frames go on a square first: pictures do, where the model wants it."""
    return kind is SourceKind.PICTURE and preprocessing.pad_pictures


def frame_pixels(
    frames: Sequence[Frame], kind: SourceKind, preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    """Frames, of any sizes -> float32 [n, 3, S, S]. Pictures are padded first where the model wants it."""
    padded = is_padded(kind, preprocessing)
    return pixels_from_pictures(
        [pad_to_square(frame.rgb, mean=preprocessing.mean) if padded else frame.picture for frame in frames],
        image_size=preprocessing.image_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
