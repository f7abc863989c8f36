"""The picture of what a question looks at: every patch where it was in the frame, every frame at its time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llamavid.config import Preprocessing
from llamavid.errors import SourceError, UsageError
from llamavid.runtime.evidence import Evidence
from llamavid.runtime.heatmap import (
    Box,
    ShownFrame,
    attended_box,
    drawing,
    heat_over,
    shown_frames,
    write_png,
)
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD, pad_to_square, resize_and_crop
from llamavid.runtime.session import FrameTime
from llamavid.runtime.video.sources import open_source
from tests.clips import drawn_frame, write_clip

SIDE, GRID = 112, 8
PREPROCESSING = Preprocessing(image_size=SIDE, mean=CLIP_MEAN, std=CLIP_STD, pad_pictures=True)


def brightness_of_patches(rgb: np.ndarray) -> np.ndarray:
    """[1, N] as attention: how bright each patch is in what the encoder sees of uint8 [H, W, 3]."""
    seen = resize_and_crop(rgb[None], image_size=SIDE)[0].astype(np.float32).mean(axis=2)
    patches = seen.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).mean(axis=(1, 3))
    return (patches / patches.sum()).reshape(1, -1).astype(np.float32)


def evidence(attention: np.ndarray) -> Evidence:
    frames = tuple(FrameTime(index, index / 25) for index in range(len(attention)))
    return Evidence(frames, np.ones(len(attention), np.float32), attention)


def centre(weights: np.ndarray) -> tuple[float, float]:
    """Of mass [h, w], as parts of the width and the height."""
    rows, columns = np.indices(weights.shape) + 0.5
    total, (height, width) = weights.sum(), weights.shape
    return float((weights * columns).sum() / total / width), float((weights * rows).sum() / total / height)


def shown_picture(rgb: np.ndarray, attention: np.ndarray, folder: Path) -> ShownFrame:
    Image.fromarray(rgb).save(folder / "frame.png")
    with open_source(folder / "frame.png") as source:
        (shown,) = shown_frames(source, evidence(attention), [0], PREPROCESSING)
    return shown


# Where a patch lies


@pytest.mark.parametrize(
    ("size", "spot"),
    [
        ((640, 272), (300, 60)),
        ((640, 272), (200, 200)),
        ((360, 640), (30, 420)),
        ((500, 500), (440, 20)),
        ((57, 33), (24, 12)),
    ],
)
def test_heat_lies_on_the_only_bright_spot_of_a_video_frame(
    size: tuple[int, int], spot: tuple[int, int]
) -> None:
    """Through the resize and crop that the encoder gets, and back."""
    (width, height), (x, y) = size, spot
    side = min(size) // 6
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[y : y + side, x : x + side] = 255
    attention = brightness_of_patches(rgb).reshape(GRID, GRID)
    box = attended_box(width, height, image_size=SIDE)
    heat = heat_over(ShownFrame(0.0, 1.0, 1, rgb, attention, box))
    assert heat.shape == (height, width)
    found, expected = centre(heat), centre(rgb[..., 0].astype(float))
    patch = min(size) / GRID
    assert abs(found[0] - expected[0]) * width < patch / 4
    assert abs(found[1] - expected[1]) * height < patch / 4


@pytest.mark.parametrize("size", [(300, 200), (200, 300)])
def test_heat_lies_on_the_only_bright_spot_of_a_padded_picture(size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[20:60, 30:70] = 255
    padded = pad_to_square(rgb)
    bright = np.where(padded == 255, padded, 0)
    shown = shown_picture(rgb, brightness_of_patches(bright), tmp_path)
    assert shown.rgb.shape[0] == shown.rgb.shape[1]  # with its padding
    assert not shown.is_cropped
    found, expected = centre(heat_over(shown)), centre(bright[..., 0].astype(float))
    assert found == pytest.approx(expected, abs=1 / GRID / 4)


def test_one_patch_lights_its_own_cell_and_nothing_outside_of_the_crop() -> None:
    attention = np.zeros((GRID, GRID), np.float32)
    attention[0, 0] = 1
    box = attended_box(640, 320, image_size=SIDE)
    assert box == Box(160, 0, 480, 320)
    heat = heat_over(ShownFrame(0.0, 1.0, 1, np.zeros((320, 640, 3), np.uint8), attention, box))
    assert heat[20, 180] == pytest.approx(1, abs=0.05)
    assert heat[:, :160].max() == heat[:, 480:].max() == 0
    assert heat[160:].max() == 0


# Which frames


def test_the_frames_are_those_of_the_file_at_their_times(tmp_path: Path) -> None:
    clip = write_clip(
        tmp_path / "clip.mp4", frames=50, size=(64, 64), pts_ms=[40 * i + 500 for i in range(50)]
    )
    attention = np.full((2, 64), 1 / 64, np.float32)
    with open_source(clip, fps=1) as source:
        times = [FrameTime(frame.index, frame.pts_seconds) for frame in source.frames()]
    told = Evidence(tuple(times), np.array([1, 2], np.float32), attention)
    with open_source(clip, fps=1) as source:
        shown = shown_frames(source, told, [0, 1], PREPROCESSING)
    assert [frame.pts_seconds for frame in shown] == [time.pts_seconds for time in times]
    assert [frame.rank for frame in shown] == [2, 1]
    for frame, time in zip(shown, times, strict=True):
        small = np.asarray(Image.fromarray(frame.rgb).resize((64, 64), Image.Resampling.BOX), int)
        differences = [np.abs(small - drawn_frame(i, (64, 64))).mean() for i in range(50)]
        assert int(np.argmin(differences)) == time.index


def test_a_file_that_lost_its_frames_is_named(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    told = evidence(np.full((9, 64), 1 / 64, np.float32))
    with open_source(clip, fps=25) as source, pytest.raises(SourceError, match="no longer has frame 8"):
        shown_frames(source, told, [0, 8], PREPROCESSING)


# The file


def test_a_drawing_has_room_for_its_frames_side_by_side(tmp_path: Path) -> None:
    shown = shown_picture(drawn_frame(0), np.full((1, 64), 1 / 64, np.float32), tmp_path)
    one, three, four = (drawing([shown] * count, title="Why?").size for count in (1, 3, 4))
    assert three[0] == four[0] == 3 * 300 + 4 * 16
    assert three[1] == one[1]
    assert four[1] > three[1] + 300
    assert drawing([shown], title="and why " * 60).size[1] > one[1]


def test_only_a_png_is_replaced_and_nothing_half_written_stays(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3))
    for _ in range(2):
        write_png(picture, tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as found:
            assert (found.format, found.size) == ("PNG", (4, 3))
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is no PNG"):
        write_png(picture, tmp_path / "thesis.txt")
    with pytest.raises(UsageError, match="exists and is no PNG"):
        write_png(picture, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.png", "thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
