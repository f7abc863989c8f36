"""Every kind of wide instructions makes the same bits as the plain code, NumPy, PIL and CLIP's processor.

Those that this processor has are tested; `runtime/native/tests/neon.sh` tests Arm's by an emulator.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llamavid.errors import DeviceError, UsageError
from llamavid.runtime.implementation import SIMD, simd
from llamavid.runtime.pixels import pixels_from_rgb
from tests.runtime.test_pixels import (
    NATIVE_IS_EXPECTED,
    assert_same_bits,
    picture,
    pixels_by_clip,
    resized_by_pil,
)

pytestmark = pytest.mark.skipif(
    not NATIVE_IS_EXPECTED, reason="the compiled module is not installed: pip install . with a C++17 compiler"
)

HERE: list[str] = (
    importlib.import_module("llamavid.runtime._native").simd_here() if NATIVE_IS_EXPECTED else []
)
# A row of 21 pixels and the byte that may be written past it fill 64 bytes, of 22 no more.
SIDES = st.sampled_from([1, 2, 5, 7, 21, 22, 32, 64, 97, 224, 336])
SHORT, MIDDLE, LONG = st.integers(1, 60), st.integers(1, 500), st.integers(1, 4000)
SHAPES = st.one_of(st.tuples(MIDDLE, MIDDLE), st.tuples(SHORT, LONG), st.tuples(LONG, SHORT))


@pytest.fixture(params=HERE)
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LLAMAVID_PIXELS", "native")
    monkeypatch.setenv("LLAMAVID_SIMD", request.param)
    return str(request.param)


def pixels_by(path: str, rgb: NDArray[np.uint8], image_size: int, **constants: Any) -> NDArray[np.float32]:
    """By "numpy" or one of SIMD."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LLAMAVID_PIXELS", "numpy" if path == "numpy" else "native")
        environment.setenv("LLAMAVID_SIMD", path)
        return pixels_from_rgb(rgb[None], image_size=image_size, **constants)


@given(shape=SHAPES, image_size=SIDES, seed=st.integers(0, 99))
@example(shape=(1, 1), image_size=224, seed=0)
@example(shape=(1, 4000), image_size=224, seed=0)
@example(shape=(4000, 1), image_size=224, seed=0)
@example(shape=(2161, 3839), image_size=224, seed=0)
@example(shape=(3999, 2003), image_size=224, seed=0)
@example(shape=(4000, 4000), image_size=7, seed=0)
@example(shape=(2160, 3840), image_size=1, seed=0)
@settings(max_examples=150, deadline=None)
def test_every_path_makes_the_bits_of_the_plain_code(
    shape: tuple[int, int], image_size: int, seed: int
) -> None:
    rgb = picture(*shape, seed=seed)
    plain = pixels_by("scalar", rgb, image_size)
    for path in HERE:
        assert_same_bits(pixels_by(path, rgb, image_size), plain)


@given(shape=SHAPES, image_size=st.sampled_from([7, 32, 97]), seed=st.integers(0, 99))
@example(shape=(720, 1280), image_size=224, seed=0)
@example(shape=(1280, 720), image_size=336, seed=0)
@example(shape=(90, 100), image_size=336, seed=0)
@settings(max_examples=50, deadline=None)
def test_every_path_makes_the_bytes_of_pil_and_numpy(
    shape: tuple[int, int], image_size: int, seed: int
) -> None:
    if max(shape) > 40 * min(shape):
        return  # PIL resizes the whole picture: gigabytes
    rgb = picture(*shape, seed=seed)
    as_they_are = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    by_numpy = pixels_by("numpy", rgb, image_size, **as_they_are)
    by_pil = resized_by_pil(rgb, image_size).transpose(2, 0, 1)
    for path in HERE:
        made = pixels_by(path, rgb, image_size, **as_they_are)
        assert_same_bits(made, by_numpy)
        np.testing.assert_array_equal(np.rint(made[0] * 255).astype(np.uint8), by_pil)


@pytest.mark.parametrize("image_size", [32, 224, 336])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (719, 1281), (301, 224), (97, 97), (30, 41)])
def test_pixels_are_those_of_clips_processor(forced: str, height: int, width: int, image_size: int) -> None:
    rgb = np.stack([picture(height, width, seed=seed) for seed in range(2)])
    assert_same_bits(pixels_from_rgb(rgb, image_size=image_size), pixels_by_clip(rgb, image_size))


# Which instructions run


def test_the_environment_forces_the_instructions(forced: str) -> None:
    assert simd() == forced


def test_unforced_the_fastest_of_the_processor_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAVID_PIXELS", "native")
    monkeypatch.delenv("LLAMAVID_SIMD", raising=False)
    assert simd() == HERE[0]
    assert HERE[-1] == "scalar"
    assert set(HERE) <= set(SIMD)


def test_numpy_has_no_instructions_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAVID_PIXELS", "numpy")
    assert simd() == ""


@pytest.mark.parametrize("lacking", sorted(set(SIMD) - set(HERE)))
def test_instructions_that_the_processor_lacks_are_refused_by_name(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAVID_PIXELS", "native")
    monkeypatch.setenv("LLAMAVID_SIMD", lacking)
    with pytest.raises(DeviceError, match=f"LLAMAVID_SIMD is {lacking}, which this processor does not run"):
        pixels_from_rgb(np.zeros((1, 4, 4, 3), np.uint8), image_size=2)


def test_unknown_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAVID_PIXELS", "native")
    monkeypatch.setenv("LLAMAVID_SIMD", "sse9")
    with pytest.raises(UsageError, match="'sse9'; expected scalar, avx2, avx512 or neon"):
        simd()


def test_the_compiled_module_itself_refuses_unknown_instructions() -> None:
    native = importlib.import_module("llamavid.runtime._native")
    ones, pixels = np.ones(3, np.float32), np.empty((1, 3, 2, 2), np.float32)
    with pytest.raises(ValueError, match="no instructions of the name"):
        native.pixels_from_rgb(np.zeros((1, 4, 4, 3), np.uint8), ones, ones, pixels, "sse9")
