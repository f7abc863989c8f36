"""Evidence: which number tells the frames that show what is asked about, and what giving it costs.

The little world knows what each frame shows. Asked about an actor that is in some frames of a clip only, a
number is judged by how often it is higher in a frame with the actor than in one without (AUC, 0.5 is chance).

python -m benchmarks.evidence
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import log
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.contract import DType, GraphContract, context_contract
from llamavid.embedded import HOME
from llamavid.export.builder import GraphBuilder
from llamavid.export.graphs import write_context
from llamavid.export.layers import Layers
from llamavid.export.precision import FP32
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid, load_model
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZES
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.pixels import pixels_from_rgb
from llamavid.train.world_casting import scenes
from llamavid.train.world_drawing import frames
from llamavid.train.world_questions import Kind, Question, questions
from llamavid.train.world_scene import COLORS, SHAPES, Actor, Point, Scene

Array = npt.NDArray[np.float64]

CLIPS, LONGS, SEED = 300, 8, 80
LARGER = 2.5  # times the radius, in the middle of the picture: outside of what the model was trained on
FRAMES, QUESTION_TOKENS = 32, 12
ROUNDS = 8


def _entropy(scores: Tensor) -> Tensor:
    logs = scores.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


# Of scores [T, M, N]: one number [T, M] for each query, averaged over the queries.
CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "log-sum-exp less log N": lambda s: s.logsumexp(-1) - log(s.shape[-1]),
    "highest": lambda s: s.amax(-1),
    "highest less mean (kept)": lambda s: s.amax(-1) - s.mean(-1),
    "log-sum-exp less mean": lambda s: s.logsumexp(-1) - s.mean(-1),
    "log N less entropy of the weights": lambda s: log(s.shape[-1]) - _entropy(s),
    "mean": lambda s: s.mean(-1),
}


def main() -> None:
    publish("evidence", "Evidence", "python -m benchmarks.evidence", [*_separation(), *_cost()])


# 1) Which number


def _separation() -> list[Line]:
    model = load_model(HOME / "release" / "checkpoint")
    drawn = chain(scenes("heldout", SEED, CLIPS), scenes("heldout", SEED, LONGS, form="long"))
    alone = (scene for scene in scenes("heldout", SEED + 1, CLIPS) if len(scene.actors) == 1)
    usual = list(_examined(model, drawn))
    ordered = [found for found in usual if found[0].kind in (Kind.WHEN, Kind.ORDER)]
    large = list(_examined(model, map(_enlarged, alone)))
    sets = {"when and order": ordered, "every question about an actor": usual, "large actors": large}
    return [
        _line(f"{what}: {name}", [(shown, values[name]) for _, shown, values in found])
        for what, found in sets.items()
        for name in CANDIDATES
    ]


def _line(what: str, found: list[tuple[npt.NDArray[np.bool_], Array]]) -> Line:
    within = statistics.mean(_auc(values[shown], values[~shown]) for shown, values in found)
    every, shown = np.concatenate([v for _, v in found]), np.concatenate([s for s, _ in found])
    pooled = _auc(every[shown], every[~shown])
    return Line(what, within, "AUC", f"{pooled:.3f} over all frames at once; {len(found)} questions")


def _examined(
    model: LlamaVid, drawn: Iterable[Scene]
) -> Iterator[tuple[Question, npt.NDArray[np.bool_], dict[str, Array]]]:
    """Questions about an actor of some frames only: which frames show it, and every candidate."""
    for scene in drawn:
        asked = [(question, _shown(scene, question)) for question in questions(scene)]
        asked = [(question, shown) for question, shown in asked if shown.any() and not shown.all()]
        features = _features(model, scene) if asked else torch.empty(0)
        for question, shown in asked:
            scores = _scores(model, features, question.text)
            values = {name: of(scores).mean(1).double().numpy() for name, of in CANDIDATES.items()}
            yield question, shown, values


def _shown(scene: Scene, question: Question) -> npt.NDArray[np.bool_]:
    """[T], whether the actor that the question names is there; nowhere, where it names none."""
    actor = None if question.answer == "no" else _named(scene, question.text)
    return np.array([actor is not None and actor.life.presence(at) > 0 for at in range(scene.seconds)], bool)


def _named(scene: Scene, text: str) -> Actor | None:
    words = re.findall("[a-z]+", text)
    shape = next((word for word in words if word in SHAPES), None)
    color = next((word for word in words if word in COLORS), None)
    if shape is None and color is None:
        return None
    fits = (actor for actor in scene.actors if actor.shape == shape or (not shape and color in actor.colors))
    return next(fits, None)


def _enlarged(scene: Scene) -> Scene:
    centre = Point(0.5, 0.5)
    actors = (
        dataclasses.replace(actor, radius=min(0.48, LARGER * actor.radius), start=centre, end=centre)
        for actor in scene.actors
    )
    return dataclasses.replace(scene, actors=tuple(actors))


@torch.inference_mode()
def _features(model: LlamaVid, scene: Scene) -> Tensor:
    made = model.config.preprocessing
    pixels = pixels_from_rgb(frames(scene, 1.0), image_size=made.image_size, mean=made.mean, std=made.std)
    return model.encode_frames(torch.from_numpy(pixels), batch=16)


@torch.inference_mode()
def _scores(model: LlamaVid, features: Tensor, question: str) -> Tensor:
    """[T, M, N]."""
    ids = torch.from_numpy(model.question_tokenizer.ids(question))
    query = model.compressor.text_query(model.text_decoder(features, ids))
    return model.compressor._scores(model.compressor._patches(features), query)


def _auc(with_it: Array, without: Array) -> float:
    """How often a value of the first is above one of the second; equal ones count half."""
    below = np.searchsorted(np.sort(without), with_it, side="left").sum()
    not_above = np.searchsorted(np.sort(without), with_it, side="right").sum()
    return float((below + not_above) / 2 / (len(with_it) * len(without)))


# 2) What it costs


def _cost() -> list[Line]:
    """The context graph at EVA-g's and Vicuna-7B's widths, with and without the two outputs."""
    with tempfile.TemporaryDirectory() as folder:
        executors = _context_graphs(Path(folder))
        random = np.random.default_rng(0)
        inputs = {
            "features": random.normal(size=(FRAMES, 257, 1408)).astype(np.float32),
            "question_ids": random.integers(1000, 2000, (1, QUESTION_TOKENS)),
        }
        sides = {name: lambda run=executor.run: run(inputs) for name, executor in executors.items()}
        spent = in_turn(sides, ROUNDS)
    slower = ratio(spent["with evidence"], spent["without"])
    notes = {"without": "", "with evidence": f"{slower:.3f} times without"}
    return [
        Line(f"context graph, {FRAMES} frames, {name}", statistics.median(times), "ms", notes[name])
        for name, times in spent.items()
    ]


def _context_graphs(folder: Path) -> dict[str, OnnxExecutor]:
    # The graph reads neither the encoder's blocks nor the language model's layers: one of each will do.
    size = dataclasses.replace(SIZES["7b"], vision_depth=1, layers=1)
    write_random_checkpoint(folder / "release", size, seed=0, dtype=torch.float16)
    opened = open_checkpoint(folder / "release" / "checkpoint")
    contract = context_contract(opened.config, DType.FLOAT32)
    with GraphBuilder("context", contract, folder) as g:
        write_context(Layers(g, lambda name: opened.read(name).numpy(), FP32), opened.config)
        file = g.save()
    bare = onnx.load(str(file), load_external_data=False)
    del bare.graph.output[1:]  # ONNX Runtime leaves out what leads to no output
    (folder / "bare.onnx").write_bytes(bare.SerializeToString())
    only = GraphContract(contract.inputs, contract.outputs[:1])
    return {
        "without": OnnxExecutor(folder / "bare.onnx", only),
        "with evidence": OnnxExecutor(file, contract),
    }


if __name__ == "__main__":
    main()
