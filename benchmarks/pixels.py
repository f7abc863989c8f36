"""Pixels for the encoder: the native path, the NumPy path and Pillow, in turn on the same frames.

python -m benchmarks.pixels
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD, pixels_from_rgb

SIZES = ((1920, 1080), (1280, 720), (640, 272))  # width, height


def main() -> None:
    lines = []
    for width, height in SIZES:
        rgb = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        sides = {
            "native": _ours("native", rgb),
            "numpy": _ours("numpy", rgb),
            "Pillow": lambda rgb=rgb: _pillow(rgb[0]),
        }
        assert np.array_equal(sides["native"](), sides["numpy"]())
        spent = in_turn(sides, rounds=15)
        for name, times in spent.items():
            note = "" if name == "native" else f"native is {ratio(times, spent['native']):.1f} times as fast"
            lines.append(Line(f"{width}x{height} to 224, {name}", statistics.median(times), "ms", note))
    publish("pixels", "Pixels, one frame", "python -m benchmarks.pixels", lines)


def _ours(path: str, rgb: np.ndarray) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        os.environ["LLAMAVID_PIXELS"] = path
        return pixels_from_rgb(rgb, image_size=224)

    return run


def _pillow(rgb: np.ndarray) -> np.ndarray:
    """Resize the whole picture, crop, normalize: the usual way in Python."""
    height, width = rgb.shape[:2]
    size = (224 * width // min(rgb.shape[:2]), 224 * height // min(rgb.shape[:2]))
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    resized = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
    cropped = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return ((cropped - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
