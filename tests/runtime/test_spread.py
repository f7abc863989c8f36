"""A few frames of a clip, spread over all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llamavid.config import Preprocessing
from llamavid.errors import SourceError
from llamavid.runtime.clip import clip_pixels, spread_pixels
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD
from tests.clips import write_clip

PREPROCESSING = Preprocessing(28, CLIP_MEAN, CLIP_STD, pad_pictures=True)


def shown(path: Path, frames: int, fps: float) -> list[int]:
    """Which of the frames at `fps` they are."""
    every = clip_pixels(path, PREPROCESSING, fps=fps)
    found = spread_pixels(path, PREPROCESSING, frames=frames, isolated=False)
    assert (found.dtype, found.shape[1:]) == (np.float32, (3, 28, 28))
    return [next(i for i, one in enumerate(every) if np.array_equal(one, frame)) for frame in found]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [(4, [0, 1, 2, 3]), (8, [1, 3, 5, 7]), (40, [4, 12, 24, 32]), (60, [4, 20, 36, 52])],
)
def test_frames_are_spread_over_the_whole_clip(tmp_path: Path, seconds: int, chosen: list[int]) -> None:
    clip = write_clip(tmp_path / "clip.mkv", frames=seconds * 2, fps=2)
    assert shown(clip, 4, fps=1) == chosen


def test_a_clip_of_a_second_shows_as_many_frames_when_it_has_them(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", frames=8, fps=8)
    assert shown(clip, 4, fps=8) == [1, 3, 5, 7]
    assert shown(clip, 20, fps=8) == list(range(8))


def test_a_file_that_is_no_clip_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 4000)
    with pytest.raises(SourceError, match=r"broken\.mp4"):
        spread_pixels(tmp_path / "broken.mp4", PREPROCESSING, frames=4)
