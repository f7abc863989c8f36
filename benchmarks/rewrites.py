"""What each exact rewrite saves: the context graph plain and rewritten, and the published computation.

python -m benchmarks.rewrites [ROUNDS]

Q-Former and EVA-g at their real widths, a language model of 7B's width, random weights, a question of 16
tokens. Per frame and question, at batch 32 and batch 1; both sides in turn, and the median of ratios.
The published computation is PyTorch eager float32, which asks every frame the whole question. Writes
`results/rewrites.{md,json}`. Needs 1 GB of disk and 5 GB of memory.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.calibrated import GraphCalibration
from llamavid.contract import DType, context_contract, vision_contract
from llamavid.export.builder import GraphBuilder
from llamavid.export.frame_types import GRAPH_PREFIX, reader
from llamavid.export.graphs import write_context, write_vision
from llamavid.export.layers import Layers
from llamavid.export.precision import FP32, INT8, Precision
from llamavid.export.rewrites import NONE, PAYING, Rewrite, Rewrites, applicable
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZES
from llamavid.model.streamed import token_networks
from llamavid.runtime.executors import open_session
from llamavid.scales import GraphScales, Step

BATCHES = (32, 1)  # frames
WORDS = 16  # of a question
ENCODED = 2  # frames a run of the encoder's one block
TIMES_PUBLISHED = 4.0  # what must hold at the larger batch
# The 7B release, but for what the text-related part does not need.
SIZE = dataclasses.replace(
    SIZES["7b"], vision_depth=1, layers=1, vocab=512, text_vocab=512, shard_bytes=1 << 40
)

Array = np.ndarray[Any, Any]
Run = Callable[[], object]


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_checkpoint(folder, SIZE, seed=7)
        checkpoint = open_checkpoint(folder / "checkpoint")
        lines = [line for batch in BATCHES for line in _context_lines(checkpoint, folder, batch, rounds)]
        lines.append(_encoder_line(checkpoint, folder, rounds))
    publish("rewrites", "The exact rewrites, each against the plain graph", _COMMAND, lines)


_COMMAND = "python -m benchmarks.rewrites"


def _context_lines(checkpoint: Checkpoint, folder: Path, batch: int, rounds: int) -> Iterator[Line]:
    width, rows = checkpoint.config.vision.width, 1 + checkpoint.config.vision.patches
    features = np.random.default_rng(0).normal(size=(batch, rows, width)).astype(np.float32)
    ids = np.arange(100, 100 + WORDS)[None]
    inputs = {"features": features, "question_ids": ids}
    plain = _running(_session(checkpoint, folder, "context", FP32, NONE), inputs)
    published = _published(checkpoint, features, ids)
    for name, precision, rewrites in (
        ("the plain graph", FP32, NONE),
        ("every rewrite that pays", FP32, PAYING),
        ("int8, the rewrites that it takes", INT8, PAYING),
    ):
        side = (
            plain
            if rewrites is NONE
            else _running(_session(checkpoint, folder, "context", precision, rewrites), inputs)
        )
        spent = in_turn({"published": published, "this": side}, rounds)
        ms = statistics.median(spent["this"]) / batch
        found = ratio(spent["published"], spent["this"])
        note = (
            f"{ms:.1f} ms a frame; must be {TIMES_PUBLISHED:g}" if rewrites and batch > 1 else f"{ms:.1f} ms"
        )
        yield Line(f"batch {batch}: {name}, times as fast as the published computation", found, "x", note)
    for rewrite in Rewrite:
        side = _running(_session(checkpoint, folder, "context", FP32, frozenset({rewrite})), inputs)
        spent = in_turn({"plain": plain, "this": side}, rounds)
        found = ratio(spent["plain"], spent["this"])
        yield Line(f"batch {batch}: {rewrite.value} alone, of the plain graph", found, "x")


def _encoder_line(checkpoint: Checkpoint, folder: Path, rounds: int) -> Line:
    side = checkpoint.config.vision.image_size
    pixels = np.random.default_rng(0).normal(size=(ENCODED, 3, side, side)).astype(np.float32)
    plain, rewritten = (
        _running(_session(checkpoint, folder, "vision", FP32, rewrites), {"pixels": pixels})
        for rewrites in (NONE, PAYING)
    )
    spent = in_turn({"plain": plain, "this": rewritten}, 4 * rounds)
    found = ratio(spent["plain"], spent["this"])
    return Line("encoder, one block and the patches: all rewrites, of the plain graph", found, "x")


def _session(
    checkpoint: Checkpoint, folder: Path, graph: str, precision: Precision, rewrites: Rewrites
) -> ort.InferenceSession:
    """A graph as it is exported; its files, which ONNX Runtime has mapped, are gone when it is closed."""
    contract_of, write = _WRITERS[graph]
    calibration = _any_steps(checkpoint) if precision.eight_bits else None
    read = reader(checkpoint, GRAPH_PREFIX[graph])
    rewrites = applicable(rewrites, precision)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        contract = contract_of(checkpoint.config, DType.FLOAT32)
        with GraphBuilder(graph, contract, Path(own)) as g:
            write(Layers(g, read, precision, calibration=calibration, rewrites=rewrites), checkpoint.config)
            return open_session(g.save())


_WRITERS = {"vision": (vision_contract, write_vision), "context": (context_contract, write_context)}


def _any_steps(checkpoint: Checkpoint) -> GraphCalibration:
    """Time does not depend on their values."""
    modules = [name.removesuffix(".weight") for name in checkpoint.tensors if name.endswith(".weight")]
    return GraphCalibration(GraphScales("int8", dict.fromkeys(modules, Step(8.0, 8.0 / 127))), {})


def _running(session: ort.InferenceSession, inputs: dict[str, Array]) -> Run:
    return lambda: session.run(None, inputs)


def _published(checkpoint: Checkpoint, features: Array, ids: Array) -> Run:
    """Each frame with the question: as many questions as frames, so that nothing is shared."""
    decoder, compressor = token_networks(checkpoint)
    rows, asked = torch.from_numpy(features), torch.from_numpy(np.repeat(ids, len(features), axis=0))

    @torch.inference_mode()
    def run() -> object:
        return compressor.context_tokens(rows, compressor.text_query(decoder(rows, asked)))

    return run


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
