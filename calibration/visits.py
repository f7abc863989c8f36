"""The parts of a model in the order in which calibration goes through them, each opened when its turn comes.

    vision, vision.blocks.0 ..., content, context, language.model.layers.0 ..., language.lm_head

Between parts go lists of tensors: one tensor of all frames as far as the features, then one [1, T, D] for
each prompt. Knows how parts run and what their products are called; not what is watched in them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llamavid.calibration.inputs import (
    HEAD_INPUTS,
    Input,
    block_inputs,
    content_inputs,
    context_inputs,
    layer_inputs,
)
from llamavid.calibration.material import Material
from llamavid.calibration.options import LANGUAGE_GRAPH, CalibrationOptions
from llamavid.calibration.prompts import embedded_prompts, prompt_ids
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.compressor import Compressor, frame_tokens
from llamavid.model.qformer import TextDecoderModel
from llamavid.model.streamed import BATCH, Part, language_parts, token_networks, vision_parts
from llamavid.tokenizer import QuestionTokenizer

State = list[Tensor]
_HEAD = "language.lm_head"
HEAD_ROWS = 1024  # tokens at once: their logits take 128 MB at 32,000 words


@dataclass(frozen=True)
class Opened:
    """A part in memory.

    modules: by their names in the graph, `blocks.3`.
    run: what was given by the part before -> what the next one needs.
    """

    modules: Mapping[str, nn.Module]
    run: Callable[[State], State]

    def weight(self, name: str) -> Tensor:
        """By the name in the graph, `blocks.3.mlp.fc1.weight`."""
        owner = max((found for found in self.modules if _is_inside(name, found)), key=len)
        return self.modules[owner].get_parameter(name.removeprefix(owner).removeprefix("."))


@dataclass(frozen=True)
class Visit:
    """One part.

    name: of the checkpoint, `vision.blocks.3`.
    inputs: what enters its products; none where the graph gets no format.
    gives: whether later parts need what leaves it; `content` is looked at in passing.
    """

    name: str
    graph: str
    inputs: tuple[Input, ...]
    gives: bool
    open: Callable[[], Opened]


def visits(checkpoint: Checkpoint, material: Material, options: CalibrationOptions) -> list[Visit]:
    """As far as anything is to be watched."""
    language = LANGUAGE_GRAPH in options.graphs
    found = [
        *_vision_visits(checkpoint),
        *_token_visits(checkpoint, material, options.template if language else None),
    ]
    found += _language_visits(checkpoint) if language else []
    return [visit if visit.graph in options.graphs else replace(visit, inputs=()) for visit in found]


def _vision_visits(checkpoint: Checkpoint) -> list[Visit]:
    """Pixels to features."""
    vision = checkpoint.config.vision

    def opened(number: int) -> Opened:
        part = next(vision_parts(checkpoint, first=number))
        return Opened(
            {part.name.partition(".")[2]: part.module},
            lambda state: [torch.cat([part.run(frames) for frames in state[0].split(BATCH)])],
        )

    inputs = {"vision": (), **{f"vision.blocks.{i}": block_inputs(vision, i) for i in range(vision.depth)}}
    return [
        Visit(name, "vision", inputs[name], True, functools.partial(opened, number))
        for number, name in enumerate(inputs)
    ]


def _token_visits(checkpoint: Checkpoint, material: Material, template: str | None) -> list[Visit]:
    """Features to frame tokens, and with a template on to prompts."""

    def content() -> Opened:
        _, compressor = token_networks(checkpoint)

        def run(state: State) -> State:
            _content_tokens(compressor, state[0])
            return state

        return Opened({"": compressor}, run)

    def context() -> Opened:
        decoder, compressor = token_networks(checkpoint)

        def run(state: State) -> State:
            tokens = _frame_tokens(checkpoint, decoder, compressor, state[0], material)
            if template is None:
                return []
            return embedded_prompts(checkpoint, prompt_ids(checkpoint, material, template=template), tokens)

        return Opened({"text_decoder": decoder, "compressor": compressor}, run)

    config = checkpoint.config
    return [
        Visit("content", "content", content_inputs(config), False, content),
        Visit("context", "context", context_inputs(config.text_decoder), True, context),
    ]


def _content_tokens(compressor: Compressor, features: Tensor) -> Tensor:
    return torch.cat([compressor.content_tokens(frames) for frames in features.split(BATCH)])


def _frame_tokens(
    checkpoint: Checkpoint,
    decoder: TextDecoderModel,
    compressor: Compressor,
    features: Tensor,
    material: Material,
) -> list[Tensor]:
    """[T, 1+n, D] for every question, of its clip's frames."""
    maximum = checkpoint.config.text_decoder.max_tokens
    tokenizer = QuestionTokenizer(checkpoint.question_vocabulary, max_tokens=maximum)
    content, found = _content_tokens(compressor, features), []
    for about, question in material.asked():
        ids = torch.from_numpy(tokenizer.ids(question))
        context = [
            compressor.context_tokens(frames, compressor.text_query(decoder(frames, ids)))
            for frames in features[about].split(BATCH)
        ]
        found.append(frame_tokens(torch.cat(context), content[about]))
    return found


def _language_visits(checkpoint: Checkpoint) -> list[Visit]:
    """Prompts to logits."""
    language = checkpoint.config.language

    def opened(number: int) -> Opened:
        part = next(language_parts(checkpoint, first=number))
        run = _through_head if part.name == _HEAD else _through_layer
        return Opened({part.name.removeprefix("language."): part.module}, functools.partial(run, part))

    inputs = {f"language.model.layers.{i}": layer_inputs(language, i) for i in range(language.layers)}
    inputs |= {"language.model.norm": (), _HEAD: HEAD_INPUTS}
    return [
        Visit(name, LANGUAGE_GRAPH, inputs[name], True, functools.partial(opened, number))
        for number, name in enumerate(inputs)
    ]


def _through_layer(part: Part, state: State) -> State:
    return [part.run(sequence) for sequence in state]


def _through_head(part: Part, state: State) -> State:
    """Its logits are nobody's input."""
    for sequence in state:
        for rows in sequence.split(HEAD_ROWS, dim=1):
            part.run(rows)
    return []


def _is_inside(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")
