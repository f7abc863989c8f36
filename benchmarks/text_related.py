"""Context graphs to compare: written as they are exported, with any rewrites, in float32 or int8.

    material = Material(checkpoint, folder, frames=32)
    run = material.graph(INT8, PAYING, together=8)
    tokens = run()                                          [32, 1, D]

Frames are random pixels through the checkpoint's encoder; int8's steps are those of a scan of them. Knows
nothing of time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.openvino_peer import compiled
from benchmarks.published import both_ways, eager, text_related
from llamavid.calibrated import GraphCalibration
from llamavid.contract import DType, GraphContract, TensorSpec, context_contract
from llamavid.export.builder import GraphBuilder
from llamavid.export.context_attention import write_context_attention
from llamavid.export.frame_types import GRAPH_PREFIX, frame_types, reader
from llamavid.export.graphs import write_context
from llamavid.export.image_rows import ImageRows
from llamavid.export.layers import Layers
from llamavid.export.precision import INT8, Precision
from llamavid.export.rewrites import Rewrites, applicable
from llamavid.export.scan import scan_activations
from llamavid.export.text_decoder import asked_rows
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.streamed import streamed_features
from llamavid.runtime.executors import open_session
from llamavid.runtime.kernels import Kernels

Array = np.ndarray[Any, Any]
Run = Callable[[], Array]  # -> context tokens [frames, 1, D]

SCANNED = 4  # frames
TOKENS = "context_tokens"


class Material:
    """A checkpoint, and frames and a question of random numbers."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, *, frames: int, words: int = 16) -> None:
        self._checkpoint, self._folder = checkpoint, folder
        vision = checkpoint.config.vision
        shape = (frames, 3, vision.image_size, vision.image_size)
        self.pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.features = streamed_features(checkpoint, torch.from_numpy(self.pixels)).numpy()
        self.ids = np.arange(100, 100 + words)[None]

    def published(self, frames: int) -> dict[str, Run]:
        """By how its attentions multiply."""
        sides = both_ways(eager(text_related(self._checkpoint, self.ids)))
        return {name: partial(side, self.features[:frames]) for name, side in sides.items()}

    def graph(
        self,
        precision: Precision,
        rewrites: Rewrites,
        *,
        frames: int,
        together: int,
        kernels: Kernels = Kernels.BEST,
        openvino: bool = False,
    ) -> Run:
        """`together` frames a run; `kernels` as of `open_session`."""
        with tempfile.TemporaryDirectory(dir=self._folder) as own:  # what has mapped its files keeps them
            file = self._written(Path(own), precision, rewrites)
            if openvino:
                infer = compiled(file)

                def ask(inputs: dict[str, Array]) -> Array:
                    return np.array(infer(inputs)[TOKENS])
            else:
                session = open_session(file, kernels=kernels)

                def ask(inputs: dict[str, Array]) -> Array:
                    return np.asarray(session.run([TOKENS], inputs)[0])

        return lambda: np.concatenate(
            [
                ask({"features": self.features[at : at + together], "question_ids": self.ids})
                for at in range(0, frames, together)
            ]
        )

    def with_kept_images(self, rewrites: Rewrites, *, frames: int, together: int) -> Run:
        """In int8, were the image's keys and values handed in with the features; they are zeros here."""
        config = self._checkpoint.config
        decoder, rows = config.text_decoder, 1 + config.vision.patches
        crossing = [index for index in range(decoder.layers) if decoder.has_cross_attention(index)]
        names = [f"text_decoder.layers.{index}.cross_attention" for index in crossing]
        modules = [f"{name}.{role}" for name in names for role in ("key", "value")]
        plain = context_contract(config, DType.FLOAT32)
        shape = ("n", str(rows), str(decoder.width))
        kept = tuple(TensorSpec(module, DType.FLOAT32, shape) for module in modules)
        contract = GraphContract((*plain.inputs, *kept), plain.outputs)
        own = tempfile.TemporaryDirectory(dir=self._folder)
        with own, GraphBuilder("context", contract, Path(own.name)) as g:
            layers = self._layers(g, INT8, rewrites)
            features = g.input("features")
            patches = layers.last(features, config.vision.patches)
            kept = {module: g.input(module) for module in modules}
            image = ImageRows(features, features, kept, names[0])
            hidden = asked_rows(layers, decoder, image, features, g.input("question_ids"))
            write_context_attention(layers, config, hidden, patches)
            session = open_session(g.save())
        images = np.zeros((together, rows, decoder.width), np.float32)
        inputs = {"question_ids": self.ids, **dict.fromkeys(modules, images)}
        return lambda: np.concatenate(
            [
                session.run([TOKENS], {"features": self.features[at : at + together], **inputs})[0]
                for at in range(0, frames, together)
            ]
        )

    def _written(self, folder: Path, precision: Precision, rewrites: Rewrites) -> Path:
        contract = context_contract(self._checkpoint.config, DType.FLOAT32)
        with GraphBuilder("context", contract, folder) as g:
            write_context(self._layers(g, precision, rewrites), self._checkpoint.config)
            return g.save()

    def _layers(self, g: GraphBuilder, precision: Precision, rewrites: Rewrites) -> Layers:
        calibration = self._calibration if precision.rounds else None
        read = reader(self._checkpoint, GRAPH_PREFIX["context"], calibration)
        chosen = applicable(rewrites, precision)
        return Layers(g, read, precision, calibration=calibration, rewrites=chosen)

    @cached_property
    def _calibration(self) -> GraphCalibration:
        seen = scan_activations(self._checkpoint, self.pixels[:SCANNED])
        types = frame_types(self._checkpoint, INT8, scales=None, seen=seen)
        assert types.calibration
        return types.calibration.graph("context")
