"""Pixels: RGB bytes in, the vision encoder's input out, bit for bit as CLIP's preprocessing with PIL.

Takes decoded pictures; knows nothing about where they come from or what the
model does with them. Two implementations give the same bits: the NumPy one
here is the truth and always works; the compiled one (`runtime/native`) is
used where it is installed. `runtime/implementation.py` chooses.

Note [PIL's resize]
    PIL resizes bytes in fixed point: a horizontal pass, rounded to bytes, then
    a vertical one. Each output sample is a weighted sum of a few source
    samples, its taps. Weights follow the bicubic kernel (Keys 1981, a = -0.5),
    stretched where the side shrinks; they are computed in float64, divided by
    their sum and rounded to 22 fraction bits: 32 less 8 for the byte and 2 for
    overshoot and sign. PIL skips the pass of a side that keeps its size; here
    it runs and changes nothing, its one weight that is not 0 being exactly 1.

    The order of the float64 operations matters, and so does that of the
    passes. Pillow 13 takes the vertical one first when it shrinks a picture
    more than twice as tall as wide (12.2: a hundred times), which moves bytes
    by as much as 28. Here the order stays the one that every Pillow had when
    LLaMA-VID was trained and recorded, whatever Pillow is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamavid.errors import UsageError
from llamavid.runtime.implementation import native_or_none, simd_of

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # red, green, blue, a byte of 255 being 1
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FRACTION_BITS = 22  # Note [PIL's resize]
KERNEL_REACH = 2.0  # of the bicubic kernel to either side, in samples
MAX_SIDE = 2**24  # PIL holds a side in a float32, exact up to here
FLOAT32_MAX, FLOAT32_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)

PixelDtype: TypeAlias = type[np.float32] | type[np.float16] | np.dtype[Any]

PICTURE = ("H", "W", "3")
PICTURES = ("n", *PICTURE)


def pixels_from_rgb(
    rgb: NDArray[np.uint8],
    *,
    image_size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: PixelDtype = np.float32,
) -> NDArray[Any]:
    """Prepares pictures for the vision encoder, bit for bit as CLIPImageProcessor does on PIL.

    Args:
        rgb: uint8 [n, H, W, 3], red first.
        image_size: S, side of the encoder's input in pixels.
        mean, std: of red, green and blue, a byte of 255 being 1.
        dtype: float32, or float16: the same values, rounded as NumPy rounds.

    Returns:
        `dtype` [n, 3, S, S]: shorter side resized to S, centre cropped, less mean, over std.

    Raises:
        UsageError: an argument is not of that form, or LLAMAVID_PIXELS or LLAMAVID_SIMD is no such name.
        DeviceError: LLAMAVID_PIXELS=native where the compiled module is missing, or LLAMAVID_SIMD names
            instructions that this processor lacks.
    """
    check_rgb(rgb, PICTURES)
    check_image_size(image_size)
    means, stds, kind = checked_constants(mean, std, dtype)
    native = native_or_none()
    if native is None:
        return normalized(resize_and_crop(rgb, image_size=image_size), means, stds, kind)
    pixels = np.empty((len(rgb), 3, image_size, image_size), kind)
    native.pixels_from_rgb(np.ascontiguousarray(rgb), means, stds, pixels, simd_of(native))
    return pixels


def resize_and_crop(rgb: NDArray[np.uint8], *, image_size: int) -> NDArray[np.uint8]:
    """Resizes the shorter side to S and crops the centre, to the bytes that PIL gives; always NumPy.

    Computes only what the crop keeps: a picture of 1 x 4000 costs no more than a square one.

    Args:
        rgb: uint8 [n, H, W, 3].
        image_size: S, in pixels.

    Returns:
        uint8 [n, S, S, 3].

    Raises:
        UsageError: an argument is not of that form.
    """
    check_rgb(rgb, PICTURES)
    check_image_size(image_size)
    height, width = rgb.shape[1:3]
    shorter = min(height, width)  # under 2^53 a whole division is the processor's int(S * longer / shorter)
    rows, row_weights = _taps(height, image_size * height // shorter, keep=image_size)
    columns, column_weights = _taps(width, image_size * width // shorter, keep=image_size)
    top, bottom = rows.min(), rows.max() + 1

    cropped = np.empty((len(rgb), image_size, image_size, 3), np.uint8)
    for picture, result in zip(rgb, cropped, strict=True):
        narrow = _weighted_sums(picture[top:bottom].swapaxes(0, 1), columns, column_weights)  # [S, rows, 3]
        result[:] = _weighted_sums(narrow.swapaxes(0, 1), rows - top, row_weights)
    return cropped


def pad_to_square(rgb: NDArray[np.uint8], *, mean: Sequence[float] = CLIP_MEAN) -> NDArray[np.uint8]:
    """Centres a picture on a square of the mean colour, as LLaVA does for `image_aspect_ratio: pad`.

    Args:
        rgb: uint8 [H, W, 3].
        mean: of red, green and blue in 0..1; 255 times it, rounded down, is the colour.

    Returns:
        uint8 [m, m, 3], m = max(H, W); when the margins cannot be equal the upper or left one is smaller.

    Raises:
        UsageError: an argument is not of that form.
    """
    check_rgb(rgb, PICTURE)
    _per_channel("mean", mean, low=0.0, high=1.0)
    height, width = rgb.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(value * 255) for value in mean]
    square[top : top + height, left : left + width] = rgb
    return square


def _taps(source: int, resized: int, *, keep: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """What the centre `keep` of `resized` samples are made of; Note [PIL's resize].

    Returns:
        int [taps, keep], which of the `source` samples each tap reads, and
        int32 [taps, keep], its weight times 2^22, 0 for taps past the end.
    """
    scale = source / resized
    stretch = max(scale, 1.0)
    reach = KERNEL_REACH * stretch
    center = (np.arange(keep) + (resized - keep) // 2 + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.intp), 0)
    end = np.minimum((center + reach + 0.5).astype(np.intp), source)
    taps = first + np.arange((end - first).max())[:, None]
    weights = np.where(taps < end, _bicubic((taps - center + 0.5) * (1.0 / stretch)), 0.0)
    weights /= np.add.accumulate(weights)[-1]  # not np.sum, which adds in another order
    fixed = np.trunc(weights * 2**FRACTION_BITS + np.copysign(0.5, weights))
    return np.minimum(taps, source - 1), fixed.astype(np.int32)


def _bicubic(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5, in PIL's order of operations."""
    x = np.abs(offset)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < KERNEL_REACH, far, 0.0))


def _weighted_sums(
    samples: NDArray[np.uint8], taps: NDArray[np.intp], weights: NDArray[np.int32]
) -> NDArray[np.uint8]:
    """uint8 [source, m, 3] to uint8 [keep, m, 3]: along the first axis, the rounded sums over the taps."""
    total = np.full((taps.shape[1], *samples.shape[1:]), 1 << (FRACTION_BITS - 1), np.int32)  # a half
    for tap, weight in zip(taps, weights, strict=True):
        total += samples[tap] * weight[:, None, None]
    return np.clip(total >> FRACTION_BITS, 0, 255).astype(np.uint8)


def normalized(
    rgb: NDArray[np.uint8], means: NDArray[np.float32], stds: NDArray[np.float32], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """uint8 [n, S, S, 3] to `dtype` [n, 3, S, S]: a table, as only channel and byte decide the result."""
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)  # the processor's `rescale`
    with np.errstate(over="ignore"):  # infinity, as the compiled code gives it, without a word
        table = ((unit - means[:, None]) / stds[:, None]).astype(dtype)  # [3, 256], its `normalize`
    return np.stack([table[channel][rgb[..., channel]] for channel in range(3)], axis=1)


def checked_constants(
    mean: Sequence[float], std: Sequence[float], dtype: PixelDtype
) -> tuple[NDArray[np.float32], NDArray[np.float32], np.dtype[Any]]:
    """float32 [3] of mean and of std, and the dtype. Raises `UsageError`."""
    means, stds = _per_channel("mean", mean), _per_channel("std", std, low=FLOAT32_TINY)
    if dtype not in (np.float32, np.float16):
        raise UsageError(
            f"dtype is {dtype!r}",
            expected="numpy.float32 or numpy.float16",
            next_step="Take the one that the vision encoder reads.",
        )
    return means, stds, np.dtype(dtype)


def check_rgb(rgb: NDArray[np.uint8], layout: tuple[str, ...]) -> None:
    is_array = isinstance(rgb, np.ndarray)
    fits = is_array and rgb.dtype == np.uint8 and rgb.ndim == len(layout) and rgb.shape[-1] == 3
    if not (fits and all(1 <= side <= MAX_SIDE for side in rgb.shape[-3:-1])):
        found = f"{rgb.dtype} {list(rgb.shape)}" if is_array else f"a {type(rgb).__name__}"
        raise UsageError(
            f"rgb is {found}",
            expected=f"a NumPy array, uint8 [{', '.join(layout)}] with H and W from 1 to {MAX_SIDE}",
            next_step="Decode pictures to RGB bytes.",
        )


def check_image_size(image_size: int) -> None:
    if not (isinstance(image_size, int) and 1 <= image_size <= MAX_SIDE):
        raise UsageError(
            f"image_size is {image_size!r}",
            expected=f"a whole number of pixels from 1 to {MAX_SIDE}",
            next_step="Take it from the bundle's manifest.",
        )


def _per_channel(
    name: str, values: Sequence[float], *, low: float = -FLOAT32_MAX, high: float = FLOAT32_MAX
) -> NDArray[np.float32]:
    """float32 [3] of the three numbers, each from `low` to `high`."""
    numbers = np.asarray(values, np.float32)
    if numbers.shape != (3,) or not ((low <= numbers) & (numbers <= high)).all():
        raise UsageError(
            f"{name} is {values!r}",
            expected=f"three numbers, for red, green and blue, from {low:g} to {high:g}",
            next_step="Take it from the bundle's manifest.",
        )
    return numbers
