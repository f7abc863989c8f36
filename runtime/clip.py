"""From a file to the encoder's input: the frames that the reference would look at, prepared as it would.

What answering, training and calibration share, so that all three see the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamavid.config import Preprocessing
from llamavid.runtime.pixels import pad_to_square
from llamavid.runtime.video.frames import Frame, SourceKind
from llamavid.runtime.video.sources import open_source
from llamavid.runtime.yuv import pixels_from_pictures


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
