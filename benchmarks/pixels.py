"""Pixels for the encoder, on one core: every native path, NumPy and the usual ways, in turn on one frame.

From RGB beside Pillow and CLIP's processor; from a decoded frame's YUV beside PyAV's RGB and FFmpeg's.

python -m benchmarks.pixels
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.runtime import _native
from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD, PixelDtype, pixels_from_rgb
from llamavid.runtime.video.videos import Upright
from llamavid.runtime.yuv import Yuv420, pixels_from_yuv420
from tests.clips import sample_clip

try:
    from transformers import CLIPImageProcessorPil as ClipProcessor  # transformers 5
except ImportError:
    from transformers import CLIPImageProcessor as ClipProcessor  # transformers 4: this one is on PIL

SIZES = ((1920, 1080), (1280, 720), (640, 480), (640, 272))  # width, height
FASTEST = f"native {_native.simd_here()[0]}"


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # FFmpeg's threads too
    lines = []
    for width, height in SIZES:
        rgb = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        sides = _sides_from_rgb(rgb)
        for name, run in sides.items():
            # Pillow's line skips CLIP's step through float64: its last bits may differ.
            assert name == "Pillow" or np.array_equal(run(), sides["numpy"]()), name
        lines += _measured(f"{width}x{height} to 224", sides, FASTEST)

    sides = _sides_from_frame(_decoded())
    expected = sides["planes, numpy"]()
    for name, run in sides.items():
        # PyAV's own conversion interpolates colour.
        made = run()
        assert name.startswith("PyAV") or np.array_equal(made, expected.astype(made.dtype)), name
    lines += _measured("decoded 1280x720 to 224", sides, f"planes, {FASTEST}")
    publish("pixels", "Pixels, one frame, processor time on one core", "python -m benchmarks.pixels", lines)


def _measured(what: str, sides: dict[str, Callable[[], np.ndarray]], best: str) -> list[Line]:
    # Processor time: all of it is one thread's, and others on this machine make a long side wait more often.
    spent = in_turn(sides, rounds=25, clock=time.process_time)
    lines = []
    for name, times in spent.items():
        note = "" if name == best else f"{best} is {ratio(times, spent[best]):.1f} times as fast"
        lines.append(Line(f"{what}, {name}", statistics.median(times), "ms", note))
    return lines


def _sides_from_rgb(rgb: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """What is compared; ours last, so that they find the frame in the cache, as one just decoded is."""
    processor = ClipProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    image = Image.fromarray(rgb[0])

    def run() -> np.ndarray:
        return pixels_from_rgb(rgb, image_size=224)

    return {
        "Pillow": lambda: _pillow(image),
        "CLIPImageProcessor": lambda: processor(images=[image], return_tensors="np")["pixel_values"],
        "numpy": _ours("numpy", run),
        **{f"native {simd}": _ours("native", run, simd) for simd in reversed(_native.simd_here())},
    }


def _sides_from_frame(frame: VideoFrame) -> dict[str, Callable[[], np.ndarray]]:
    upright = Upright([])
    filtered = _ours("native", lambda: pixels_from_rgb(upright.rgb(frame)[None], image_size=224)[0])
    planes = {
        f"planes, native {simd}": _ours("native", lambda: _from_planes(frame), simd)
        for simd in reversed(_native.simd_here())
    }
    return {
        "PyAV rgb24 + PIL + numpy": lambda: _pillow(Image.fromarray(frame.to_ndarray(format="rgb24"))),
        f"FFmpeg's filter rgb24 + {FASTEST}": filtered,
        "planes, numpy": _ours("numpy", lambda: _from_planes(frame)),
        **planes,
        f"planes, {FASTEST}, float16": _ours("native", lambda: _from_planes(frame, np.float16)),
    }


def _ours(path: str, run: Callable[[], np.ndarray], simd: str = "") -> Callable[[], np.ndarray]:
    def forced() -> np.ndarray:
        os.environ["LLAMAVID_PIXELS"], os.environ["LLAMAVID_SIMD"] = path, simd
        return run()

    return forced


def _from_planes(frame: VideoFrame, dtype: PixelDtype = np.float32) -> np.ndarray:
    """BT.601 and luma from 16 to 235: what this clip is."""
    planes = [
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    ]
    return pixels_from_yuv420(Yuv420(tuple(planes)), image_size=224, dtype=dtype)


def _decoded() -> VideoFrame:
    with av.open(str(sample_clip("bigbuckbunny"))) as clip:
        return next(clip.decode(video=0))


def _pillow(image: Image.Image) -> np.ndarray:
    """Resize the whole picture, crop, normalize: the usual way in Python."""
    size = tuple(224 * side // min(image.size) for side in image.size)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    resized = image.resize(size, Image.Resampling.BICUBIC)
    cropped = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return ((cropped - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
