"""What could be rounded: the linear layers of a model, by graph, in the order of the model; and their work.

Takes dimensions, reads no weight: the model is built, and run once, on the meta device. The patch convolution
is never rounded: it is 0.2 % of the encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from llamavid.config import ModelConfig
from llamavid.model.compressor import Compressor
from llamavid.model.parts import language_model, text_decoder
from llamavid.model.rounded import Linear, is_rounded, linear_layers
from llamavid.model.vision import VisionEncoder
from llamavid.scales import GraphScales

QUESTION_TOKENS = 16  # a usual question, with the text decoder's [DEC] and [SEP]


class Module(NamedTuple):
    """A linear layer's weight [N, K], and how many rows it is multiplied with."""

    inputs: int  # K
    outputs: int  # N
    rows: int  # of a frame, with one question of `QUESTION_TOKENS`; of the language model: of a token

    @property
    def multiplications(self) -> int:
        """For a frame, or a token."""
        return self.inputs * self.outputs * self.rows


def graph_modules(config: ModelConfig) -> dict[str, dict[str, Module]]:
    """Graph -> its modules by name."""
    with torch.device("meta"):
        vision, decoder, compressor = VisionEncoder(config.vision), text_decoder(config), Compressor(config)
        pixels = torch.empty(1, 3, config.vision.image_size, config.vision.image_size)
        ids = torch.empty(1, QUESTION_TOKENS, dtype=torch.int64)
    layers = {
        "vision": linear_layers(vision, ""),
        "content": linear_layers(compressor.content_projector, "content_projector"),
        "context": linear_layers(decoder, "text_decoder") + _of_context(compressor),
    }
    rows: dict[str, dict[str, int]] = {graph: {} for graph in layers}
    with contextlib.ExitStack() as around:
        for graph, found in layers.items():
            around.enter_context(_counted(found, rows[graph]))
        features = vision(pixels)
        compressor.content_tokens(features)
        compressor.context_tokens(features, compressor.text_query(decoder(features, ids)))
    modules = {
        graph: {name: _module(layer, rows[graph][name]) for name, layer, _ in layers[graph]}
        for graph in layers
    }
    with torch.device("meta"):
        language = linear_layers(language_model(config.language), "")
    return modules | {"llm": {name: _module(linear, 1) for name, linear, _ in language}}


def rounded_modules(config: ModelConfig, scales: Mapping[str, GraphScales]) -> dict[str, dict[str, Module]]:
    """Those that the scales round, of the graphs that the scales have."""
    return {
        graph: {name: module for name, module in modules.items() if is_rounded(scales[graph], name)}
        for graph, modules in graph_modules(config).items()
        if graph in scales
    }


def _of_context(compressor: Compressor) -> list[Linear]:
    """The content tokens' projector is in a graph of its own."""
    layers = linear_layers(compressor, "compressor")
    return [layer for layer in layers if not layer.name.startswith("compressor.content_projector.")]


def _module(linear: nn.Linear, rows: int) -> Module:
    return Module(linear.in_features, linear.out_features, rows)


@contextlib.contextmanager
def _counted(layers: list[Linear], rows: dict[str, int]) -> Iterator[None]:
    """While open, `rows` learns how many go through each layer."""

    def counting(layer: Linear) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows[layer.name] = inputs[0].numel() // layer.linear.in_features

        return enter

    handles = [layer.entered.register_forward_pre_hook(counting(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
