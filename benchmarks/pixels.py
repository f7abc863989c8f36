"""Pixels for the encoder: every native path, NumPy, Pillow and CLIP's processor, in turn on the same frames.

python -m benchmarks.pixels
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.runtime import _native
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD, pixels_from_rgb

try:
    from transformers import CLIPImageProcessorPil as ClipProcessor  # transformers 5
except ImportError:
    from transformers import CLIPImageProcessor as ClipProcessor  # transformers 4: this one is on PIL

SIZES = ((1920, 1080), (1280, 720), (640, 480), (640, 272))  # width, height


def main() -> None:
    lines = []
    for width, height in SIZES:
        rgb = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        sides = _sides(rgb)
        for name, run in sides.items():
            # Pillow's line skips CLIP's step through float64: its last bits may differ.
            assert name == "Pillow" or np.array_equal(run(), sides["numpy"]()), name
        spent = in_turn(sides, rounds=15)
        fastest = f"native {_native.simd_here()[0]}"
        for name, times in spent.items():
            note = "" if name == fastest else f"{fastest} is {ratio(times, spent[fastest]):.1f} times as fast"
            lines.append(Line(f"{width}x{height} to 224, {name}", statistics.median(times), "ms", note))
    publish("pixels", "Pixels, one frame", "python -m benchmarks.pixels", lines)


def _sides(rgb: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """What is compared; ours last, so that they find the frame in the cache, as one just decoded is."""
    processor = ClipProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    image = Image.fromarray(rgb[0])
    return {
        "Pillow": lambda: _pillow(image),
        "CLIPImageProcessor": lambda: processor(images=[image], return_tensors="np")["pixel_values"],
        "numpy": _ours("numpy", rgb),
        **{f"native {simd}": _ours("native", rgb, simd) for simd in reversed(_native.simd_here())},
    }


def _ours(path: str, rgb: np.ndarray, simd: str = "") -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        os.environ["LLAMAVID_PIXELS"], os.environ["LLAMAVID_SIMD"] = path, simd
        return pixels_from_rgb(rgb, image_size=224)

    return run


def _pillow(image: Image.Image) -> np.ndarray:
    """Resize the whole picture, crop, normalize: the usual way in Python."""
    size = tuple(224 * side // min(image.size) for side in image.size)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    resized = image.resize(size, Image.Resampling.BICUBIC)
    cropped = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return ((cropped - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
