"""What the tests of choosing begin with: the simplest scales, and a checkpoint that is hard to round."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from llamavid.calibrated import Calibration
from llamavid.calibration.modules import graph_modules
from llamavid.calibration.sensitivity import Sample
from llamavid.formats.eight_bits import EightBits
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.fingerprint import fingerprint
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.model.rounded import linear_layers, rounded
from llamavid.scales import FORMAT_VERSION, GraphScales, Scales, Step
from tests.conftest import GOLDEN, golden_checkpoint, recording

QUESTIONS = ("What happens?", "How many people are there, and where?")
FRAGILE = "blocks.1.attn.proj"
INT8 = {"vision": "int8", "content": "int8", "context": "int8", "llm": "int4"}


@dataclass(frozen=True)
class Given:
    """A model, and what its errors are measured with."""

    checkpoint: Checkpoint
    model: LlamaVid
    sample: Sample
    calibration: Calibration


def given(checkpoint: Checkpoint, formats: Mapping[str, str] = INT8, *, frames: int = 2) -> Given:
    """Scales of the largest magnitudes on real frames; int4 in blocks of 32."""
    model = model_from_checkpoint(checkpoint)
    pixels = torch.from_numpy(recording("short-video", "video_3_frames")["pixels"].copy())[:frames]
    size = checkpoint.config.vision.image_size
    pixels = nn.functional.interpolate(pixels, size=(size, size), mode="area")
    sample = Sample(pixels, QUESTIONS, tuple(model.sequence([question], []) for question in QUESTIONS))
    largest: dict[str, dict[str, float]] = {graph: {} for graph in formats}
    with contextlib.ExitStack() as around:
        for graph in formats:
            for prefix, module in parts(model, graph):
                around.enter_context(_watched(module, prefix, largest[graph]))
        outputs(model, sample)
    modules = graph_modules(checkpoint.config)
    graphs = {
        graph: GraphScales("int4", block=32)
        if format == "int4"
        else GraphScales(format, {m: _step(largest[graph][m], EightBits(format)) for m in modules[graph]})
        for graph, format in formats.items()
    }
    scales = Scales(FORMAT_VERSION, "largest", fingerprint(checkpoint), "c" * 64, len(pixels), "", graphs)
    return Given(checkpoint, model, sample, Calibration(scales, {}))


@cache
def golden(formats: tuple[tuple[str, str], ...] = tuple(INT8.items())) -> Given:
    """Of the recorded short-video checkpoint."""
    return given(golden_checkpoint("short-video"), dict(formats))


def parts(model: LlamaVid, graph: str) -> list[tuple[str, nn.Module]]:
    """The modules of a graph, with their names there."""
    content = [("content_projector", model.compressor.content_projector)]
    context = [("text_decoder", model.text_decoder)]
    context += [
        (f"compressor.{role}_projector", getattr(model.compressor, f"{role}_projector"))
        for role in ("query", "key", "value")
    ]
    by_graph = {
        "vision": [("", model.vision)],
        "content": content,
        "context": context,
        "llm": [("", model.language)],
    }
    return by_graph[graph]  # type: ignore[return-value]


@torch.inference_mode()
def outputs(model: LlamaVid, sample: Sample) -> tuple[Tensor, Tensor]:
    """Frame tokens of every question, and logits: the plain model in one piece."""
    features = model.encode_frames(sample.pixels)
    tokens = torch.cat([model.frame_tokens(features, question) for question in sample.questions])
    return tokens, torch.cat([model.language(inputs_embeds=rows).logits[0] for rows in sample.sequences])


@contextlib.contextmanager
def all_rounded(given: Given, chosen: Mapping[str, set[str]]) -> Iterator[None]:
    """While open, the plain model computes with those modules rounded."""
    with contextlib.ExitStack() as around:
        for graph, only in chosen.items():
            found = given.calibration.graph(graph)
            assert found
            for prefix, module in parts(given.model, graph):
                around.enter_context(rounded(module, prefix, found, only=only))
        yield


def fragile_checkpoint(folder: Path) -> Checkpoint:
    """The recorded one with a channel of values a thousand times smaller, and the column of `FRAGILE` that
    reads it a thousand times larger: it computes the same, and rounding that column loses all the others."""
    short = shutil.copytree(GOLDEN / "short-video", folder / "short-video")
    tower = torch.load(short / "eva_vit_g.pth", weights_only=True)
    width = tower["blocks.1.attn.v_bias"].shape[0]
    tower["blocks.1.attn.qkv.weight"][2 * width] /= 1000
    tower["blocks.1.attn.v_bias"][0] /= 1000
    tower["blocks.1.attn.proj.weight"][:, 0] *= 1000
    torch.save(tower, short / "eva_vit_g.pth")
    return open_checkpoint(short / "checkpoint")


@contextlib.contextmanager
def _watched(module: nn.Module, prefix: str, largest: dict[str, float]) -> Iterator[None]:
    handles = []
    for name, _, entered in linear_layers(module, prefix):

        def see(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            largest[name] = max(float(inputs[0].abs().amax()), largest.get(name, 0.0))

        handles.append(entered.register_forward_pre_hook(see))
    yield
    for handle in handles:
        handle.remove()


def _step(largest: float, format: EightBits) -> Step:
    return Step(largest, largest / format.largest)
