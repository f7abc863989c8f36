"""The encoder against the published computation, at EVA-g's width: time a frame, and the error that it costs.

A few blocks of random weights (1408 wide, 16 heads of 88, MLP 6144), exported as `llamavid export` does, with
scales from a scan of the frames that are measured. All sides run in turn, with the runtime's own session
options; beside them PyTorch, and OpenVINO on the same two files, in bfloat16 too where the processor has
it. The published computation is the faster of PyTorch's two forms. Random weights have no outliers: what
int8 costs a trained encoder is not to be read here.

python -m benchmarks.int8_encoder
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.openvino_peer import compiled, has_bfloat16
from benchmarks.published import both_ways, eager, encoder
from benchmarks.quiet import QuietRounds
from benchmarks.report import Line, publish, ratio, skipped
from llamavid.export.frame_types import frame_types, write_frame_graphs
from llamavid.export.precision import FP32, INT8
from llamavid.export.scan import scan_activations
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZES
from llamavid.parity import relative_errors
from llamavid.runtime.executors import open_session
from llamavid.runtime.kernels import Kernels

BLOCKS, ALL_BLOCKS = 8, 39  # of fewer, the patch embedding, which is there once, would be too large a part
ROUNDS = {1: 15, 8: 5}  # by frames a batch
PATIENCE_SECONDS = 180
FLOAT32, INT8_SIDE = "float32", "int8"
WITHOUT_OURS = "int8, ONNX Runtime's own operators, none of ours"
STANDARD = "int8, standard operators alone"
TIMES_PUBLISHED = 3.0  # what must hold of int8

# The encoder alone: the rest is there because a checkpoint has it.
SIZE = dataclasses.replace(
    SIZES["7b"],
    vision_depth=BLOCKS,
    text_layers=2,
    text_vocab=512,
    hidden=512,
    layers=1,
    heads=4,
    mlp=512,
    vocab=512,
)

Array = np.ndarray
Encode = Callable[[Array], Array]  # pixels [n, 3, S, S] -> features [n, 1+N, C]


def main() -> None:
    rounds = QuietRounds(PATIENCE_SECONDS)
    pixels = np.random.default_rng(0).standard_normal((max(ROUNDS), 3, 224, 224), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        sides = dict(_sides(Path(folder), pixels))
        lines = [line for frames in ROUNDS for line in _measured(sides, pixels[:frames], rounds)]
    if not find_spec("openvino"):
        lines.append(skipped("OpenVINO", "openvino"))
    elif not has_bfloat16():
        lines.append(Line("OpenVINO in bfloat16", None, "", "the processor has no bfloat16"))
    publish("int8_encoder", "The encoder in int8", "python -m benchmarks.int8_encoder", [*lines, rounds.line])


def _measured(sides: dict[str, Encode], pixels: Array, rounds: QuietRounds) -> Iterator[Line]:
    """A line a side: milliseconds a frame, how many times faster than the published, and the error."""
    frames, exact = len(pixels), sides[FLOAT32](pixels)
    errors = {name: relative_errors(exact, encode(pixels))[1] for name, encode in sides.items()}
    runs = {name: lambda encode=encode: encode(pixels) for name, encode in sides.items()}
    spent = rounds.in_turn(runs, ROUNDS[frames])
    published = [name for name in sides if name.startswith("published")]
    fastest = min(published, key=lambda name: statistics.median(spent[name]))
    for name, times in spent.items():
        per_frame = statistics.median(times) / frames * ALL_BLOCKS / BLOCKS
        note = f"{ratio(spent[fastest], times):.2f} times as fast as published"
        note += f" (must be {TIMES_PUBLISHED:g})" if name == INT8_SIDE else ""
        note += f"; relative error {errors[name]:.1e}"
        yield Line(f"{name}, batch {frames}, a frame of {ALL_BLOCKS} blocks", per_frame, "ms", note)
    for name in sides:
        if name.startswith(("OpenVINO", "published")):
            faster = ratio(spent[name], spent[INT8_SIDE])
            yield Line(f"int8, batch {frames}, times as fast as {name}", faster, "x")


def _sides(folder: Path, pixels: Array) -> Iterator[tuple[str, Encode]]:
    write_random_checkpoint(folder / "release", SIZE, seed=0, dtype=torch.float16)
    checkpoint = open_checkpoint(folder / "release" / "checkpoint")
    files = dict(_files(checkpoint, folder, pixels))
    for name, file in files.items():
        yield name, _onnxruntime(file)
    yield WITHOUT_OURS, _onnxruntime(files[INT8_SIDE], Kernels.ONNX_RUNTIME)
    yield STANDARD, _onnxruntime(files[INT8_SIDE], Kernels.STANDARD)
    yield from both_ways(eager(encoder(checkpoint))).items()
    if find_spec("openvino"):
        for name, file in files.items():
            yield f"OpenVINO, our {name} file", _openvino(file)
        if has_bfloat16():
            yield "OpenVINO, our float32 file in bfloat16", _openvino(files[FLOAT32], precision="bf16")


def _onnxruntime(file: Path, kernels: Kernels = Kernels.BEST) -> Encode:
    session = open_session(file, kernels=kernels)
    return lambda pixels: np.asarray(session.run(None, {"pixels": pixels})[0])


def _openvino(file: Path, *, precision: str = "f32") -> Encode:
    infer = compiled(file, precision=precision)
    return lambda pixels: np.array(infer({"pixels": pixels})["features"])


def _files(checkpoint: Checkpoint, folder: Path, pixels: Array) -> Iterator[tuple[str, Path]]:
    seen = scan_activations(checkpoint, pixels)
    for name, precision in ((FLOAT32, FP32), (INT8_SIDE, INT8)):
        (folder / name).mkdir()
        types = frame_types(checkpoint, precision, scales=None, seen=seen if precision is INT8 else None)
        entry = write_frame_graphs(checkpoint, folder / name, types)["vision"]
        yield name, folder / name / entry.file


if __name__ == "__main__":
    main()
