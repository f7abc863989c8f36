"""Pictures in YUV 4:2:0 give the pixels of the RGB that files give, whichever code makes them."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import Any

import av
import numpy as np
import pytest
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llamavid.errors import UsageError
from llamavid.runtime.pixels import pixels_from_rgb
from llamavid.runtime.yuv import Yuv420, YuvMatrix, pixels_from_yuv420, rgb_from_yuv420
from tests.runtime.test_pixels import BIKES, NATIVE_IS_EXPECTED, needs_native

HERE: list[str] = (
    importlib.import_module("llamavid.runtime._native").simd_here() if NATIVE_IS_EXPECTED else []
)
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="FFmpeg's converter is another one here"
)
MATRICES = [YuvMatrix.BT601, YuvMatrix.BT709]
SHORT, MIDDLE, LONG = st.integers(1, 40), st.integers(1, 400), st.integers(1, 4000)
SHAPES = st.one_of(st.tuples(MIDDLE, MIDDLE), st.tuples(SHORT, LONG), st.tuples(LONG, SHORT))


def noise(
    height: int,
    width: int,
    *,
    paired: bool = False,
    padding: int = 0,
    flipped: bool = False,
    matrix: YuvMatrix = YuvMatrix.BT601,
    full_range: bool = False,
    seed: int = 0,
) -> Yuv420:
    random = np.random.default_rng(seed)

    def plane(rows: int, columns: int) -> NDArray[np.uint8]:
        samples = random.integers(0, 256, (rows, columns + padding), np.uint8)[:, :columns]
        return samples[::-1] if flipped else samples

    half_height, half_width = -(-height // 2), -(-width // 2)
    if paired:
        uv = plane(half_height, half_width * 2).reshape(half_height, half_width, 2)
        return Yuv420((plane(height, width), uv), matrix, full_range)
    planes = (plane(height, width), plane(half_height, half_width), plane(half_height, half_width))
    return Yuv420(planes, matrix, full_range)


def rgb_by_ffmpeg(picture: Yuv420) -> NDArray[np.uint8]:
    """What the filter makes of it that files go through."""
    height, width = picture.planes[0].shape
    frame = VideoFrame(width, height, "yuv420p")
    for to, samples in zip(frame.planes, picture.planes, strict=True):
        padded = np.zeros((to.height, to.line_size), np.uint8)
        padded[:, : samples.shape[1]] = samples
        to.update(padded)
    frame.colorspace = Colorspace.ITU709 if picture.matrix is YuvMatrix.BT709 else Colorspace.ITU601
    frame.color_range = ColorRange.JPEG if picture.full_range else ColorRange.MPEG
    graph = Graph()
    form = VideoFormat("yuv420p")
    buffer = graph.add_buffer(width=width, height=height, format=form, time_base=Fraction(1))
    graph.link_nodes(buffer, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull().to_ndarray()


def pixels_by(path: str, picture: Yuv420, image_size: int, dtype: Any = np.float32) -> NDArray[Any]:
    """By "numpy" or one of SIMD."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LLAMAVID_PIXELS", "numpy" if path == "numpy" else "native")
        environment.setenv("LLAMAVID_SIMD", "" if path == "numpy" else path)
        return pixels_from_yuv420(picture, image_size=image_size, dtype=dtype)


# The RGB


def every_yuv() -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]:
    """Sixteen pictures of 1024 x 1024: every U with every V, four by four times, under every Y."""
    pairs = np.arange(2**16, dtype=np.uint16).reshape(256, 256).repeat(2, axis=0).repeat(2, axis=1)
    for start in range(16):
        luma = np.arange(start, 256, 16, dtype=np.uint8).reshape(4, 4)
        yield np.tile(luma, (256, 256)), (pairs & 255).astype(np.uint8), (pairs >> 8).astype(np.uint8)


@on_x86
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full_range", [False, True])
def test_every_y_u_and_v_become_the_rgb_that_files_give(matrix: YuvMatrix, full_range: bool) -> None:
    for planes in every_yuv():
        picture = Yuv420(planes, matrix, full_range)
        np.testing.assert_array_equal(rgb_from_yuv420(picture), rgb_by_ffmpeg(picture))


@on_x86
@given(half_height=st.integers(1, 60), width=st.integers(1, 300), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_the_rgb_is_that_of_files_at_even_heights_and_any_width(
    half_height: int, width: int, seed: int
) -> None:
    picture = noise(half_height * 2, width, seed=seed)
    np.testing.assert_array_equal(rgb_from_yuv420(picture), rgb_by_ffmpeg(picture))


@on_x86
@pytest.mark.parametrize("seed", range(20))
def test_at_odd_heights_flat_colours_are_within_three_of_those_of_files(seed: int) -> None:
    y, u, v = np.random.default_rng(seed).integers(0, 256, 3).tolist()
    planes = (np.full((33, 47), y, np.uint8), np.full((17, 24), u, np.uint8), np.full((17, 24), v, np.uint8))
    ours, theirs = rgb_from_yuv420(Yuv420(planes)), rgb_by_ffmpeg(Yuv420(planes))
    assert np.abs(ours.astype(int) - theirs).max() <= 3


@on_x86
def test_a_real_clip_gives_the_pixels_of_its_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(BIKES)) as clip:
        for frame in islice(clip.decode(video=0), 0, 51, 25):
            planes = [
                np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
                for plane in frame.planes
            ]
            picture = Yuv420(tuple(planes))
            expected = pixels_from_rgb(rgb_by_ffmpeg(picture)[None], image_size=224)[0]
            for path in ["numpy", *HERE]:
                np.testing.assert_array_equal(pixels_by(path, picture, 224), expected)


# The pixels


@needs_native
@given(
    shape=SHAPES,
    image_size=st.sampled_from([1, 7, 21, 32, 97, 224]),
    paired=st.booleans(),
    padding=st.sampled_from([0, 1, 50]),
    flipped=st.booleans(),
    matrix=st.sampled_from(MATRICES),
    full_range=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16]),
    seed=st.integers(0, 99),
)
@example((1, 1), 224, True, 0, False, YuvMatrix.BT601, False, np.float32, 0)
@example((1, 4000), 224, False, 0, False, YuvMatrix.BT601, False, np.float32, 0)
@example((4000, 1), 224, True, 0, True, YuvMatrix.BT709, True, np.float16, 0)
@example((2161, 3839), 224, True, 0, False, YuvMatrix.BT601, False, np.float32, 0)
@settings(max_examples=150, deadline=None)
def test_every_path_makes_the_bits_of_numpy(
    shape: tuple[int, int],
    image_size: int,
    paired: bool,
    padding: int,
    flipped: bool,
    matrix: YuvMatrix,
    full_range: bool,
    dtype: Any,
    seed: int,
) -> None:
    colours: dict[str, Any] = {"matrix": matrix, "full_range": full_range, "seed": seed}
    picture = noise(*shape, paired=paired, padding=padding, flipped=flipped, **colours)
    by_numpy = pixels_by("numpy", picture, image_size, dtype)
    for path in HERE:
        assert pixels_by(path, picture, image_size, dtype).tobytes() == by_numpy.tobytes()


@pytest.mark.parametrize("path", ["numpy", *HERE])
def test_chroma_in_pairs_is_the_same_picture(path: str) -> None:
    planar = noise(45, 61)
    paired = Yuv420((planar.planes[0], np.stack(planar.planes[1:], axis=-1)))
    np.testing.assert_array_equal(pixels_by(path, paired, 32), pixels_by(path, planar, 32))


@pytest.mark.parametrize("path", ["numpy", *HERE])
def test_samples_that_lie_apart_and_rows_that_are_one_are_taken(path: str) -> None:
    picture = noise(44, 60)
    row = picture.planes[0][:1]
    views = (
        np.broadcast_to(row, (22, 60))[:, ::2],
        picture.planes[1][::2, ::2],
        picture.planes[2][::-2, ::-2],
    )
    for view in views:
        view.flags.writeable = False
    copies = tuple(view.copy() for view in views)
    np.testing.assert_array_equal(pixels_by(path, Yuv420(views), 24), pixels_by("numpy", Yuv420(copies), 24))


# What the caller hands in


@pytest.mark.parametrize(
    ("planes", "given_words"),
    [
        ((), "none"),
        ((np.zeros((4, 4), np.uint8),), "uint8 [4, 4]"),
        ((np.zeros((4, 4), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)), "[2, 3]"),
        ((np.zeros((5, 4), np.uint8), np.zeros((2, 2, 2), np.uint8)), "[2, 2, 2]"),
        ((np.zeros((0, 4), np.uint8), np.zeros((0, 2, 2), np.uint8)), "[0, 4]"),
        ((np.zeros((4, 4), np.uint16), np.zeros((2, 2, 2), np.uint16)), "uint16"),
        (([[0]], [[0]], [[0]]), "a list"),
    ],
)
def test_planes_of_another_form_are_refused_by_name(planes: Any, given_words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Yuv420(planes)
    assert given_words in refusal.value.given
    assert "Y [H, W]" in refusal.value.expected
    assert refusal.value.next_step


def test_constants_out_of_bounds_are_refused_by_name() -> None:
    for wrong in ({"image_size": 0}, {"std": (1.0, 0.0, 1.0)}, {"dtype": np.float64}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            pixels_from_yuv420(noise(4, 4), **{"image_size": 8, **wrong})  # type: ignore[arg-type]


@needs_native
def test_the_compiled_module_refuses_planes_that_it_cannot_read() -> None:
    native = importlib.import_module("llamavid.runtime._native")
    y, u, uv = (np.zeros(shape, np.uint8) for shape in ((4, 4), (2, 2), (2, 2, 2)))
    constants = (np.ones(3, np.float32), np.ones(3, np.float32), np.empty((1, 3, 2, 2), np.float32))
    for planes, matrix, why in (
        ([y], 0, "planes are not"),
        ([y, u], 0, "planes are not"),
        ([y, u, uv], 0, "planes are not"),
        ([uv, u, u], 0, "planes are not"),
        ([y, u, np.zeros((2, 4), np.uint8)[:, ::2]], 0, "not packed"),
        ([y, u, np.broadcast_to(u[:1], (2, 2))], 0, "rows overlap"),
        ([y, u, u], 2, "matrix"),
    ):
        with pytest.raises(ValueError, match=why):
            native.pixels_from_yuv420(planes, matrix, False, *constants)
