"""The text-related part against the published computation, and what each exact rewrite saves.

python -m benchmarks.rewrites [ROUNDS]

Q-Former and EVA-g at their real widths, a language model of 7B's width, random weights, a question of 16
tokens; context tokens of 32 frames and of one, per frame and question. All sides of a table run in turn. The
published computation is PyTorch eager float32, which asks every frame the whole question; the fastest of its
forms is what the others are divided by. Ours runs 8 frames at a time, as `llamavid ask` does. Each rewrite
is measured twice: alone, against the plain graph, and left out, against all that the precision takes. Writes
`results/rewrites.{md,json}`. Needs 1 GB of disk and 5 GB of memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.quiet import QuietRounds
from benchmarks.report import Line, publish, ratio, skipped
from benchmarks.text_related import Array, Material, Run
from llamavid.export.precision import FP32, INT8, Precision
from llamavid.export.rewrites import NONE, PAYING, Rewrite, applicable
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZES
from llamavid.parity import relative_errors
from llamavid.runtime.encoder import CONTEXT_BATCH
from llamavid.runtime.kernels import Kernels

BATCHES = (32, 1)  # frames
TIMES_PUBLISHED = 4.0  # what must hold at the larger batch
PATIENCE_SECONDS = 150
EVERY = "every rewrite that pays"
# The 7B release, but for what the text-related part does not need.
SIZE = replace(SIZES["7b"], vision_depth=1, layers=1, vocab=512, text_vocab=512, shard_bytes=1 << 40)


def main(rounds: int) -> None:
    quiet = QuietRounds(PATIENCE_SECONDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_checkpoint(folder, SIZE, seed=7)
        material = Material(open_checkpoint(folder / "checkpoint"), folder, frames=max(BATCHES))
        lines = [line for frames in BATCHES for line in _against_published(material, frames, rounds, quiet)]
        for precision in (FP32, INT8):
            lines += _each(material, precision, rounds, quiet)
    if not find_spec("openvino"):
        lines.append(skipped("OpenVINO", "openvino"))
    publish("rewrites", "The text-related part, and its exact rewrites", _COMMAND, [*lines, quiet.line])


_COMMAND = "python -m benchmarks.rewrites"


def _against_published(material: Material, frames: int, rounds: int, quiet: QuietRounds) -> Iterator[Line]:
    """A line a side: how many times as fast as the published computation, time a frame, and error."""
    sides = dict(_sides(material, frames))
    exact = sides[next(iter(sides))]()
    errors = {name: relative_errors(exact, run())[1] for name, run in sides.items() if name != _KEPT}
    spent = quiet.in_turn(sides, rounds if frames > 1 else 4 * rounds)
    published = [name for name in sides if name.startswith("published")]
    fastest = min(published, key=lambda name: statistics.median(spent[name]))
    for name, times in spent.items():
        note = f"{statistics.median(times) / frames:.1f} ms a frame"
        note += f"; relative error {errors[name]:.1e}" if name in errors else ""
        note += f"; must be {TIMES_PUBLISHED:g}" if name == _JUDGED and frames > 1 else ""
        yield Line(f"{frames} frames: {name}", ratio(spent[fastest], times), "x", note)


_JUDGED = f"int8, {EVERY}"
_KEPT = "int8, and the image's keys and values kept from an earlier question"


def _sides(material: Material, frames: int) -> Iterator[tuple[str, Run]]:
    together = min(frames, CONTEXT_BATCH)
    yield from material.published(frames).items()
    for what, precision, rewrites in (
        ("the plain graph, float32", FP32, NONE),
        (f"float32, {EVERY}", FP32, PAYING),
        (_JUDGED, INT8, PAYING),
    ):
        yield what, material.graph(precision, rewrites, frames=frames, together=together)
    if together < frames:
        yield (
            f"{_JUDGED}, {frames} frames a run",
            material.graph(INT8, PAYING, frames=frames, together=frames),
        )
    yield _KEPT, material.with_kept_images(PAYING, frames=frames, together=together)
    if find_spec("openvino"):
        for precision in (FP32, INT8):
            run = material.graph(precision, PAYING, frames=frames, together=together, openvino=True)
            yield f"OpenVINO, our {precision.name} file", run


def _each(material: Material, precision: Precision, rounds: int, quiet: QuietRounds) -> Iterator[Line]:
    """Two lines a rewrite, and one for each kind of operators put in."""
    every = applicable(PAYING - {Rewrite.LAST_ROW}, precision)  # which is the language model's

    def written(rewrites: frozenset[Rewrite], kernels: Kernels = Kernels.BEST) -> Run:
        return material.graph(
            precision, rewrites, frames=CONTEXT_BATCH, together=CONTEXT_BATCH, kernels=kernels
        )

    plain, whole = written(NONE), written(every)
    for rewrite in sorted(every):
        alone = _faster(quiet, plain, written(frozenset({rewrite})), rounds)
        yield Line(f"{precision.name}: {rewrite.value} alone, of the plain graph", alone, "x")
        out = _faster(quiet, written(every - {rewrite}), whole, rounds)
        yield Line(f"{precision.name}: all, of all but {rewrite.value}", out, "x")
    for kernels, name in ((Kernels.STANDARD, "standard"), (Kernels.ONNX_RUNTIME, "ONNX Runtime's own")):
        put_in = _faster(quiet, written(every, kernels), whole, rounds)
        yield Line(f"{precision.name}: all, of all with {name} operators", put_in, "x")


def _faster(quiet: QuietRounds, slow: Callable[[], Array], fast: Callable[[], Array], rounds: int) -> float:
    spent = quiet.in_turn({"slow": slow, "fast": fast}, rounds)
    return ratio(spent["slow"], spent["fast"])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
