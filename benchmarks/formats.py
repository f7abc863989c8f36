"""Formats at real dimensions: relative errors of every linear layer, for each format and observer.

EVA-g's, the Q-Former's and Vicuna-7B's widths, a few blocks of each, with synthetic weights that have heavy
tails and outlier channels (Note [Heavy tails] of `llamavid.model.random_weights`). Frames are those of a
real clip.

python -m benchmarks.formats
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.format_errors import module_errors
from benchmarks.formats_page import Found, publish_formats
from llamavid.calibration.material import Clip, Material
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZE_7B
from llamavid.runtime.clip import first_pixels
from tests.clips import sample_clip

SIZE = replace(SIZE_7B, vision_depth=2, text_layers=4, layers=1)
FRAMES = 4
QUESTIONS = ("What is happening in the video?", "How many people are riding a bicycle there?")


def main() -> None:
    settings = _parser().parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        written = write_random_checkpoint(Path(folder) / "heavy", SIZE, heavy_tails=True)
        checkpoint = open_checkpoint(written / "checkpoint")
        found = [Found(*line) for line in module_errors(checkpoint, _material(checkpoint), _told(start))]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    publish_formats(found, SIZE, frames=FRAMES, seconds=time.perf_counter() - start, peak_gib=peak)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Errors of formats at real dimensions.")
    parser.add_argument("--work", type=Path, help="where 1.3 GB of checkpoint may lie meanwhile")
    return parser


def _material(checkpoint: Checkpoint) -> Material:
    clip = sample_clip("bikes")
    pixels = first_pixels([clip], checkpoint.config.preprocessing, frames=FRAMES)
    return Material((Clip(clip.name, pixels, QUESTIONS),))


def _told(start: float) -> Callable[[str], None]:
    return lambda part: print(f"{time.perf_counter() - start:5.0f} s {part}", file=sys.stderr)


if __name__ == "__main__":
    main()
