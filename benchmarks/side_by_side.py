"""A frame through the encoder and the text-related part, ours beside what a user would pick instead.

EVA-g's width (a few blocks of it) and the whole Q-Former, random weights, a question of 16 tokens. In one run
and in turn: PyTorch eager and torch.compile (the published computation in float32), ONNX Runtime on the plain
graph, that is without our rewrites, OpenVINO on that same file and on our int8 one, and ours. The error is
the relative norm against PyTorch eager; random weights have no outliers, so int8's is not a trained model's.
On one thread this process's own time is measured, which others on the machine hardly disturb.

python -m benchmarks.side_by_side [THREADS]
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.openvino_peer import compiled as openvino_compiled
from benchmarks.published import (
    Array,
    Network,
    NotCompiledError,
    Side,
    compiled,
    eager,
    encoder,
    text_related,
)
from benchmarks.quiet import QuietRounds
from benchmarks.report import ONE_THREAD, Line, in_turn, publish, ratio, skipped
from llamavid.export.frame_types import FrameTypes, frame_types, write_frame_graphs
from llamavid.export.precision import FP32, INT8
from llamavid.export.rewrites import NONE
from llamavid.export.scan import scan_activations
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZES
from llamavid.parity import relative_errors
from llamavid.runtime.executors import open_session

BLOCKS = 3
ENCODED, ASKED = 2, 32  # frames a run
WORDS = 16  # of the question
ROUNDS = {"encoder": 12, "text-related": 5}
PATIENCE_SECONDS = 120

EAGER, COMPILED = "PyTorch eager", "torch.compile"
PLAIN, REWRITTEN, OURS = "ONNX Runtime, plain graph", "ours, float32", "ours, int8"

Measure = Callable[[dict[str, Callable[[], object]], int], dict[str, list[float]]]  # milliseconds

# The language model is there because a checkpoint has one; its width is the context token's.
SIZE = dataclasses.replace(
    SIZES["7b"], vision_depth=BLOCKS, layers=1, mlp=512, vocab=512, text_vocab=512, shard_bytes=1 << 40
)


def main(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    quiet = None if threads == 1 else QuietRounds(PATIENCE_SECONDS)
    measure: Measure = quiet.in_turn if quiet else partial(in_turn, clock=time.process_time)
    random = np.random.default_rng(0)
    pixels = random.standard_normal((ENCODED, 3, 224, 224), np.float32)
    ids = np.arange(100, 100 + WORDS)[None]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        write_random_checkpoint(Path(folder, "release"), SIZE, seed=0, dtype=torch.float16)
        checkpoint = open_checkpoint(Path(folder, "release", "checkpoint"))
        files = _files(checkpoint, Path(folder), pixels)
        network = encoder(checkpoint)
        lines = list(_lines("encoder", network, pixels, _graphs(files, "vision", threads), measure))
        rows = np.concatenate([eager(network)(pixels)] * (ASKED // ENCODED))
        features = rows + random.normal(0, 0.01, rows.shape).astype(np.float32)
        network = text_related(checkpoint, ids)
        graphs = _graphs(files, "context", threads, question_ids=ids)
        lines += _lines("text-related", network, features, graphs, measure)
    command = " ".join(["python -m benchmarks.side_by_side", *([str(threads)] if threads else [])])
    if not find_spec("openvino"):
        lines.append(skipped("OpenVINO", "openvino"))
    title = f"Side by side: encoder ({BLOCKS} blocks), text-related part"
    if quiet:
        lines.append(quiet.line)
    else:
        title += ONE_THREAD
    publish("side_by_side", title, command, lines)


def _lines(
    part: str, network: Network, inputs: Array, graphs: dict[str, Side], measure: Measure
) -> Iterator[Line]:
    """A line a side: milliseconds a frame, and how many times as fast as PyTorch eager."""
    sides = {EAGER: eager(network)}
    try:
        sides[COMPILED] = compiled(network, inputs)
    except NotCompiledError as error:
        yield Line(f"{part}, {COMPILED}", None, "", str(error))
    sides |= graphs
    exact = sides[EAGER](inputs)
    errors = {name: relative_errors(exact, side(inputs))[1] for name, side in sides.items()}
    runs = {name: lambda side=side: side(inputs) for name, side in sides.items()}
    spent = measure(runs, ROUNDS[part])
    for name, times in spent.items():
        note = f"{ratio(spent[EAGER], times):.2f} times as fast as {EAGER}; relative error {errors[name]:.1e}"
        yield Line(f"{part}, {name}", statistics.median(times) / len(inputs), "ms", note)


def _files(checkpoint: Checkpoint, folder: Path, pixels: Array) -> dict[str, dict[str, Path]]:
    """Of each side the graphs' files by name, exported as `llamavid export` does."""
    seen = scan_activations(checkpoint, pixels)
    types = {
        PLAIN: FrameTypes(FP32, rewrites=NONE),
        REWRITTEN: FrameTypes(FP32),
        OURS: frame_types(checkpoint, INT8, scales=None, seen=seen),
    }
    found = {}
    for at, (name, chosen) in enumerate(types.items()):
        own = folder / str(at)
        own.mkdir()
        found[name] = {
            graph: own / entry.file for graph, entry in write_frame_graphs(checkpoint, own, chosen).items()
        }
    return found


_NAMES = {"vision": ("pixels", "features"), "context": ("features", "context_tokens")}


def _graphs(
    files: dict[str, dict[str, Path]], graph: str, threads: int | None, **also: Array
) -> dict[str, Side]:
    given, made = _NAMES[graph]
    sides: dict[str, Side] = {}
    for name, file in ((name, each[graph]) for name, each in files.items()):
        session = open_session(file, threads=threads)
        sides[name] = lambda array, run=session.run: run([made], {given: array, **also})[0]
    if find_spec("openvino"):
        for name, of in ((f"OpenVINO, {PLAIN.split(', ')[1]}", PLAIN), ("OpenVINO, our int8 file", OURS)):
            infer = openvino_compiled(files[of][graph], threads=threads)
            sides[name] = lambda array, run=infer: np.asarray(run({given: array, **also})[made])
    return sides


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
