"""Formats: relative errors of every linear layer, for each format, observer and way to migrate.

At real dimensions, with synthetic weights that have heavy tails and outlier channels (Note [Heavy tails] of
`llamavid.model.random_weights`): EVA-g's, the Q-Former's and Vicuna-7B's widths, a few blocks of each. And
of the embedded model, which is small and trained.

python -m benchmarks.formats
python -m benchmarks.formats --trained
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
from benchmarks.formats_page import Found, Page, publish_formats
from llamavid.calibration.material import Clip, Material
from llamavid.embedded import HOME
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZE_7B
from llamavid.runtime.clip import first_pixels
from tests.clips import sample_clip

SIZE = replace(SIZE_7B, vision_depth=2, text_layers=4, layers=1)
REAL_SIZE = Page(
    "formats",
    "Formats at real dimensions, synthetic weights",
    f"The weights are synthetic: {SIZE.vision_depth} blocks of EVA-g (width {SIZE.vision_width}), a Q-Former "
    f"of {SIZE.text_layers} layers ({SIZE.text_width}) and {SIZE.layers} layer of Vicuna-7B ({SIZE.hidden}), "
    "drawn with heavy tails and outlier channels, not trained. The figures compare formats, observers and "
    "migration with one another; they say nothing of answers.",
    "python -m benchmarks.formats",
)
TRAINED = Page(
    "formats_trained",
    "Formats on the embedded model, trained weights",
    "The weights are trained, and the model is small: the encoder is 176 wide, the language model 192.",
    "python -m benchmarks.formats --trained",
)


def main() -> None:
    settings = _parser().parse_args()
    if settings.trained:
        checkpoint = open_checkpoint(HOME / "release" / "checkpoint")
        questions = ("What happens in the video?", "Does the square appear before the star?")
        _measure(TRAINED, checkpoint, _material(checkpoint, HOME / "sample.mp4", 16, questions))
        return
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        written = write_random_checkpoint(Path(folder) / "heavy", SIZE, heavy_tails=True)
        checkpoint = open_checkpoint(written / "checkpoint")
        questions = ("What is happening in the video?", "How many people are riding a bicycle there?")
        _measure(REAL_SIZE, checkpoint, _material(checkpoint, sample_clip("bikes"), 4, questions))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Errors of formats, layer by layer.")
    parser.add_argument("--trained", action="store_true", help="the embedded model instead")
    parser.add_argument("--work", type=Path, help="where 1.3 GB of checkpoint may lie meanwhile")
    return parser


def _material(checkpoint: Checkpoint, clip: Path, frames: int, questions: tuple[str, ...]) -> Material:
    pixels = first_pixels([clip], checkpoint.config.preprocessing, frames=frames)
    return Material((Clip(clip.name, pixels, questions),))


def _measure(page: Page, checkpoint: Checkpoint, material: Material) -> None:
    start = time.perf_counter()
    found = [Found(*line) for line in module_errors(checkpoint, material, _told(start))]
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
    publish_formats(page, found, frames=material.frames, seconds=seconds, peak_gib=peak)


def _told(start: float) -> Callable[[str], None]:
    return lambda part: print(f"{time.perf_counter() - start:5.0f} s {part}", file=sys.stderr)


if __name__ == "__main__":
    main()
