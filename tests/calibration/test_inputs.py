"""What enters the products of a graph, and that dividing it where that is offered changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamavid.calibrated import GraphCalibration
from llamavid.calibration.inputs import graph_inputs
from llamavid.calibration.modules import graph_modules
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.scales import GraphScales, Migration
from tests.calibration.small import small_checkpoint, small_material
from tests.conftest import golden_checkpoint

GRAPHS = ("vision", "content", "context", "llm")
KINDS: list[dict[str, Any]] = [
    {},
    {"bert_type": "raw_bert_layer:2", "kv_heads": 2, "mm_projector_type": "linear"},
    {"text_image_width": 144, "rope_factor": 4.0, "mm_projector_type": "mlp3x_gelu"},
]


@pytest.fixture(params=["short-video", "long-video", *map(str, range(len(KINDS)))])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    kind: str = request.param
    return small_checkpoint(tmp_path, **KINDS[int(kind)]) if kind.isdecimal() else golden_checkpoint(kind)


def test_every_linear_layer_reads_one_input(checkpoint: Checkpoint) -> None:
    for graph, modules in graph_modules(checkpoint.config).items():
        readers = [reader for found in graph_inputs(checkpoint.config, graph) for reader in found.readers]
        assert sorted(readers) == sorted(modules)


def test_what_is_divided_is_of_the_checkpoint(checkpoint: Checkpoint) -> None:
    ours = {placed(name) for name in checkpoint.tensors}
    for graph in GRAPHS:
        names = [one.name for found in graph_inputs(checkpoint.config, graph) for one in found.divided]
        assert {(graph, name) for name in names} <= ours
        assert len(set(names)) == len(names)


def test_any_vector_leaves_the_model_what_it_was(checkpoint: Checkpoint) -> None:
    """Channels are divided by up to 8 and multiplied by up to 8: whatever is not exact is far off."""
    rng = np.random.default_rng(1)
    calibrations = {graph: random_migrations(checkpoint, graph, rng) for graph in GRAPHS}
    with torch.inference_mode():
        expected = list(outputs(model_from_checkpoint(checkpoint), checkpoint))
        model = model_from_checkpoint(checkpoint)
        for name, parameter in model.named_parameters():
            graph, own = placed(name)
            migrated = calibrations[graph].migrated(own, parameter.numpy())
            parameter.data = torch.from_numpy(np.ascontiguousarray(migrated))
        found = list(outputs(model, checkpoint))
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 2e-5  # float32 through all layers


def placed(name: str) -> tuple[str, str]:
    """A tensor of the checkpoint -> its graph, and its name there."""
    for prefix, graph, left_out in (
        ("vision.", "vision", "vision."),
        ("compressor.content_projector.", "content", "compressor."),
        ("language.", "llm", "language."),
    ):
        if name.startswith(prefix):
            return graph, name.removeprefix(left_out)
    return "context", name


def random_migrations(checkpoint: Checkpoint, graph: str, rng: np.random.Generator) -> GraphCalibration:
    migrations, vectors = [], {}
    for found in graph_inputs(checkpoint.config, graph):
        if found.divided:
            width = graph_modules(checkpoint.config)[graph][found.name].inputs
            vectors[found.name] = np.exp2(rng.uniform(-3, 3, width)).astype(np.float32)
            migrations.append(Migration(found.name, found.divided, found.readers))
    return GraphCalibration(GraphScales("int8", migrations=tuple(migrations)), vectors)


def outputs(model: LlamaVid, checkpoint: Checkpoint) -> Iterator[torch.Tensor]:
    material = small_material(size=checkpoint.config.vision.image_size)
    features = model.encode_frames(torch.from_numpy(material.pixels()[:2]))
    yield features
    tokens = model.frame_tokens(features, "What happens in the video?")
    yield from tokens.split([1, tokens.shape[1] - 1], dim=1)
    yield model.language(inputs_embeds=tokens.flatten(0, 1)[None]).logits
