"""Pictures in YUV 4:2:0, as decoders and cameras give them, to the vision encoder's input.

Takes a picture's planes and what they mean; knows nothing about where they come from. `rgb_from_yuv420` and
`runtime/pixels.py` are the truth; the compiled code gives the same bits and makes no picture in RGB: only the
rows and columns that the crop keeps are converted, four rows at a time. Where a picture may be either, planes
or RGB, it is a `Picture`.

Note [YUV to RGB]
    16-bit fixed point, as FFmpeg's converter for x86 computes it: samples times 8, less an offset, times a
    weight of 13 fraction bits, of which the upper 16 bits stay, rounded down. Two by two luma samples share
    one chroma sample, as it is; nothing is interpolated.

    So the RGB is, byte for byte, what files give today (FFmpeg's `format=rgb24` on x86) for planar pictures
    of even height and any width, at both matrices and both ranges: measured for all 2^24 combinations of Y,
    U and V, and at sizes from 1 x 2 on. At odd heights and for NV12 FFmpeg takes another way, which
    interpolates chroma: where chroma is flat a byte differs by at most 3, at coloured edges by more
    (benchmarks/NOTES.md). Here NV12 is the same picture as the planar one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llamavid.errors import UsageError
from llamavid.runtime.implementation import native_or_none, simd_of
from llamavid.runtime.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    MAX_SIDE,
    PICTURE,
    PixelDtype,
    check_image_size,
    check_rgb,
    checked_constants,
    normalized,
    resize_and_crop,
)


class YuvMatrix(Enum):
    """Which red, green and blue a Y, U and V stand for; numbers as in llamavid/runtime.h."""

    BT601 = 0  # also where a stream does not say
    BT709 = 1


# Note [YUV to RGB]: the offset of luma times 8, then the weights times 2^13: of luma, of V for red, of U and
# of V for green, of U for blue; by matrix and full range. -1534 is FFmpeg's rounding of -1534.6.
WEIGHTS = {
    (YuvMatrix.BT601, False): (128, 9539, 13075, -3209, -6660, 16525),
    (YuvMatrix.BT601, True): (0, 8192, 11485, -2819, -5850, 14516),
    (YuvMatrix.BT709, False): (128, 9539, 14686, -1747, -4366, 17305),
    (YuvMatrix.BT709, True): (0, 8192, 12901, -1534, -3835, 15201),
}


@dataclass(frozen=True, eq=False)
class Yuv420:
    """One picture. Rows may lie apart, or in reverse; nothing is copied where each row is packed.

    planes: uint8 Y [H, W], U and V [h, w] each, h and w half of H and W rounded up; or, as in NV12, Y [H, W]
        and UV [h, w, 2].
    full_range: False where luma goes from 16 to 235.

    Raises:
        UsageError: the planes are not of that form.
    """

    planes: tuple[NDArray[np.uint8], ...]
    matrix: YuvMatrix = YuvMatrix.BT601
    full_range: bool = False

    def __post_init__(self) -> None:
        arrays = all(isinstance(plane, np.ndarray) and plane.dtype == np.uint8 for plane in self.planes)
        shapes = [plane.shape for plane in self.planes] if arrays else []
        height, width = shapes[0] if shapes and len(shapes[0]) == 2 else (0, 0)
        chroma = (-(-height // 2), -(-width // 2))
        fits = shapes in ([(height, width), chroma, chroma], [(height, width), (*chroma, 2)])
        if not (fits and 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            found = ", ".join(_form(plane) for plane in self.planes)
            raise UsageError(
                f"planes are {found or 'none'}",
                expected="NumPy arrays, uint8: Y [H, W], U and V [h, w], or Y [H, W], UV [h, w, 2], h and w "
                f"being half of H and W, rounded up, and those from 1 to {MAX_SIDE}",
                next_step="Hand over the planes of a picture in YUV 4:2:0 of 8 bits, without their padding.",
            )

    @property
    def chroma(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """U and V, uint8 [h, w]."""
        if len(self.planes) == 3:
            return self.planes[1], self.planes[2]
        return self.planes[1][..., 0], self.planes[1][..., 1]

    @property
    def packed(self) -> list[NDArray[np.uint8]]:
        """The planes, with copies of those whose rows are not packed."""
        return [_with_packed_rows(plane) for plane in self.planes]


Picture: TypeAlias = NDArray[np.uint8] | Yuv420  # upright: RGB, uint8 [H, W, 3], or planes


def pixels_from_pictures(
    pictures: Sequence[Picture],
    *,
    image_size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: PixelDtype = np.float32,
) -> NDArray[Any]:
    """Prepares pictures, of any sizes, for the vision encoder: the bits of `pixels_from_rgb` on their RGB.

    Args:
        image_size: S, side of the encoder's input in pixels.
        mean, std: of red, green and blue, a byte of 255 being 1.
        dtype: float32 or float16.

    Returns:
        `dtype` [n, 3, S, S]: shorter side resized to S, centre cropped, less mean, over std.

    Raises:
        UsageError, DeviceError: as `pixels_from_rgb` does.
    """
    check_image_size(image_size)
    means, stds, kind = checked_constants(mean, std, dtype)
    native = native_or_none()
    pixels = np.empty((len(pictures), 3, image_size, image_size), kind)
    for picture, its_pixels in zip(pictures, pixels[:, None], strict=True):
        if native is None:
            rgb = rgb_of(picture)[None]
            its_pixels[:] = normalized(resize_and_crop(rgb, image_size=image_size), means, stds, kind)
        elif isinstance(picture, Yuv420):
            of = (picture.packed, picture.matrix.value, picture.full_range)
            native.pixels_from_yuv420(*of, means, stds, its_pixels, simd_of(native))
        else:
            check_rgb(picture, PICTURE)
            rgb = np.ascontiguousarray(picture)[None]
            native.pixels_from_rgb(rgb, means, stds, its_pixels, simd_of(native))
    return pixels


def pixels_from_yuv420(
    picture: Yuv420,
    *,
    image_size: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    dtype: PixelDtype = np.float32,
) -> NDArray[Any]:
    """`pixels_from_pictures` of one: `dtype` [3, S, S]."""
    return pixels_from_pictures([picture], image_size=image_size, mean=mean, std=std, dtype=dtype)[0]


def rgb_of(picture: Picture) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], red first."""
    return rgb_from_yuv420(picture) if isinstance(picture, Yuv420) else picture


def rgb_from_yuv420(picture: Yuv420) -> NDArray[np.uint8]:
    """Note [YUV to RGB]; always NumPy.

    Returns:
        uint8 [H, W, 3], red first.
    """
    offset, luma, red_v, green_u, green_v, blue_u = WEIGHTS[picture.matrix, picture.full_range]
    height, width = picture.planes[0].shape
    y = (picture.planes[0].astype(np.int32) * 8 - offset) * luma >> 16
    u, v = (
        (plane.astype(np.int32) * 8 - 128 * 8).repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        for plane in picture.chroma
    )
    red = y + (v * red_v >> 16)
    green = y + (u * green_u >> 16) + (v * green_v >> 16)
    blue = y + (u * blue_u >> 16)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255).astype(np.uint8)


def _with_packed_rows(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The plane, or a copy where samples of a row lie apart or rows overlap."""
    row = plane[0]
    packed = row.flags.c_contiguous and (len(plane) == 1 or abs(plane.strides[0]) >= row.nbytes)
    return plane if packed else np.ascontiguousarray(plane)


def _form(plane: object) -> str:
    if isinstance(plane, np.ndarray):
        return f"{plane.dtype} {list(plane.shape)}"
    return f"a {type(plane).__name__}"
