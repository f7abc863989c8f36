"""Frames whose own planes go to the pixels: the same bits as by RGB, and RGB for all the others."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from llamavid.config import Preprocessing
from llamavid.runtime.clip import frame_pixels
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD
from llamavid.runtime.video.frames import Frame, SourceKind
from llamavid.runtime.video.picture_form import PictureMemory, planes_of
from llamavid.runtime.video.planes import yuv420_of
from llamavid.runtime.video.sources import open_source
from llamavid.runtime.video.videos import Upright
from llamavid.runtime.yuv import Yuv420, rgb_from_yuv420
from tests.clips import QUARTER_CLOCKWISE, sample_clip, write_clip
from tests.runtime.test_yuv import on_x86

EVERY_FRAME = 1e6
PREPROCESSING = Preprocessing(image_size=32, mean=CLIP_MEAN, std=CLIP_STD, pad_pictures=True)

# What is decoded to planes that are taken as they are, and what is not: codec, pixel format, size, options.
PLANES: dict[str, tuple[str, str, tuple[int, int], dict[str, str]]] = {
    "h264": ("libx264", "yuv420p", (64, 48), {}),
    "h264 of a size that is padded": ("libx264", "yuv420p", (70, 50), {}),
    "h264 in BT.709": ("libx264", "yuv420p", (64, 48), {"colorspace": "bt709", "color_range": "tv"}),
    "h264 of full range": ("libx264", "yuv420p", (64, 48), {"colorspace": "bt709", "color_range": "pc"}),
    "h264 in fields": ("libx264", "yuv420p", (64, 48), {"x264-params": "tff=1:interlaced=1"}),
    "mpeg2 in fields, of odd width": ("mpeg2video", "yuv420p", (63, 46), {"flags": "+ilme+ildct"}),
    "vp8 of odd width": ("libvpx", "yuv420p", (63, 46), {}),
    "motion jpeg": ("mjpeg", "yuvj420p", (62, 46), {}),
}
RGB: dict[str, tuple[str, str, tuple[int, int], dict[str, str]]] = {
    "of odd height": ("libvpx", "yuv420p", (64, 47), {}),
    "in BT.2020": ("libx264", "yuv420p", (64, 48), {"colorspace": "bt2020nc"}),
    "of 10 bits": ("ffv1", "yuv420p10le", (64, 48), {}),
    "with all of its colours": ("libx264", "yuv444p", (64, 48), {}),
    "in RGB": ("libx264rgb", "rgb24", (64, 48), {}),
    "grey": ("ffv1", "gray", (64, 48), {}),
}


def written(folder: Path, kind: str) -> Path:
    codec, pix_fmt, size, options = {**PLANES, **RGB}[kind]
    return write_clip(
        folder / "a.mkv", frames=5, codec=codec, pix_fmt=pix_fmt, size=size, options={**options}
    )


def rgb_of_every_frame(path: Path) -> list[NDArray[np.uint8]]:
    """As FFmpeg's filter makes it."""
    with av.open(str(path)) as clip:
        upright = Upright([])
        return [upright.rgb(frame) for frame in clip.decode(video=0)]


def frames_of(path: Path, *, fps: float = EVERY_FRAME, isolated: bool) -> list[Frame]:
    """All held at once, after the source was closed."""
    with open_source(path, fps=fps, isolated=isolated) as source:
        return list(source.frames())


def pixels(frame: Frame) -> NDArray[Any]:
    return frame_pixels([frame], SourceKind.VIDEO, PREPROCESSING)


@on_x86
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("kind", PLANES)
def test_planes_give_the_bits_of_rgb(tmp_path: Path, kind: str, isolated: bool) -> None:
    path = written(tmp_path, kind)
    frames = frames_of(path, isolated=isolated)
    for frame, rgb in zip(frames, rgb_of_every_frame(path), strict=True):
        assert isinstance(frame.picture, Yuv420)
        assert frame.size == (rgb.shape[1], rgb.shape[0])
        np.testing.assert_array_equal(pixels(frame), pixels(Frame(0, 0.0, rgb)))
        np.testing.assert_array_equal(frame.rgb, rgb, strict=True)


@on_x86
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("name", ["bikes", "bigbuckbunny"])
def test_real_clips_give_the_bits_of_rgb(name: str, isolated: bool) -> None:
    frames, rgb = (
        frames_of(sample_clip(name), fps=2.5, isolated=isolated),
        rgb_of_every_frame(sample_clip(name)),
    )
    assert len(frames) > 10
    for frame in frames:
        assert isinstance(frame.picture, Yuv420)
        np.testing.assert_array_equal(pixels(frame), pixels(Frame(0, 0.0, rgb[frame.index])))
        np.testing.assert_array_equal(frame.rgb, rgb[frame.index])


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("kind", RGB)
def test_what_another_converter_would_treat_otherwise_comes_as_rgb(
    tmp_path: Path, kind: str, isolated: bool
) -> None:
    path = written(tmp_path, kind)
    for frame, rgb in zip(frames_of(path, isolated=isolated), rgb_of_every_frame(path), strict=True):
        assert isinstance(frame.picture, np.ndarray)
        np.testing.assert_array_equal(frame.rgb, rgb)


def test_a_turned_video_comes_as_rgb(tmp_path: Path) -> None:
    clip = write_clip(
        tmp_path / "a.mp4", frames=2, codec="libx264", pix_fmt="yuv420p", display=QUARTER_CLOCKWISE
    )
    for frame, rgb in zip(frames_of(clip, isolated=True), rgb_of_every_frame(clip), strict=True):
        np.testing.assert_array_equal(frame.picture, np.rot90(rgb, -1))


@on_x86
def test_planes_are_taken_only_where_ffmpeg_gives_their_rgb() -> None:
    """Every matrix and range that a file can state, then every transfer function and set of primaries."""
    stated = [*itertools.product(range(15), range(4), (1,), (1,))]
    stated += [(1, 1, transfer, 1) for transfer in range(19)] + [
        (2, 0, 2, primaries) for primaries in range(23)
    ]
    taken = 0
    for form, (matrix, color_range, transfer, primaries) in itertools.product(
        ("yuv420p", "yuvj420p"), stated
    ):
        frame = VideoFrame(38, 6, form)
        for plane in frame.planes:
            plane.update(np.random.default_rng(0).integers(0, 256, plane.buffer_size, np.uint8))
        frame.colorspace, frame.color_range = matrix, color_range
        frame.color_trc, frame.color_primaries = transfer, primaries
        picture = yuv420_of(frame)
        if picture is not None:  # then FFmpeg refuses none of it
            taken += 1
            np.testing.assert_array_equal(rgb_from_yuv420(picture), Upright([]).rgb(frame))
    assert taken == 2 * (4 * 3 + 4 + 4)


@pytest.mark.parametrize("first", [1, 9])
def test_a_frame_that_does_not_state_its_colours_looks_the_same_whatever_came_before(first: int) -> None:
    """FFmpeg's filter takes what a frame leaves unsaid from the frame before."""
    alone, after = (VideoFrame(16, 16, "yuv420p") for _ in range(2))
    before = VideoFrame(16, 16, "yuv420p")
    for frame in (alone, before, after):
        for plane in frame.planes:
            plane.update(np.random.default_rng(0).integers(0, 256, plane.buffer_size, np.uint8))
    before.colorspace = first
    upright = Upright([])
    assert not np.array_equal(upright.rgb(before), Upright([]).rgb(alone))
    np.testing.assert_array_equal(upright.rgb(after), Upright([]).rgb(alone))


def test_a_frame_of_planes_crosses_to_another_process(tmp_path: Path) -> None:
    frame = frames_of(written(tmp_path, "h264"), isolated=False)[0]
    copy = pickle.loads(pickle.dumps(frame))
    np.testing.assert_array_equal(copy.rgb, frame.rgb)
    np.testing.assert_array_equal(pixels(copy), pixels(frame))


def test_memory_is_used_again_once_nobody_holds_a_part_of_the_picture() -> None:
    memory = PictureMemory()
    first, its_bytes = memory.picture(6, 9, "BT601", False)
    address = its_bytes.ctypes.data
    rows = planes_of(first)[2][1:]
    rows[:] = 1
    del first, its_bytes
    second, its_bytes = memory.picture(6, 9, "BT709", True)
    its_bytes[:] = 2
    assert (rows == 1).all()
    del rows
    third, _ = memory.picture(6, 9, "BT601", False)
    assert planes_of(third)[0].ctypes.data == address
    assert (its_bytes == 2).all()
    assert all((plane == 2).all() for plane in planes_of(second))
