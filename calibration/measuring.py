"""How much of the material errors are measured on: as much as the size of the model allows.

Measuring runs the model about half once for each of its modules, so that frames and prompts are few where
it is large: EVA-g gets three frames, Vicuna-7B one short prompt, a tiny model eight of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from llamavid.calibration.collect import Collected
from llamavid.calibration.material import Material
from llamavid.calibration.modules import Module, graph_modules
from llamavid.calibration.outputs import Output
from llamavid.calibration.variant_errors import Sample
from llamavid.config import ModelConfig

MOST = 8  # frames, and prompts
_MULTIPLICATIONS = 10**14  # of all variants of an output: half an hour of two cores
_QUESTIONS = 2

T = TypeVar("T")


def measuring_sample(config: ModelConfig, material: Material, collected: Collected) -> Sample:
    """Evenly spread over the material: two frames and one prompt at least, where there are any."""
    modules = graph_modules(config)
    frames = max(2, min(MOST, _affordable(modules, Output.FRAME_TOKENS)))
    pixels = [frame for clip in material.clips for frame in clip.pixels]
    questions = dict.fromkeys(question for clip in material.clips for question in clip.questions)
    return Sample(
        torch.from_numpy(np.stack(_spread(pixels, frames))),
        tuple(_spread(list(questions), _QUESTIONS)),
        _prompts(collected, _affordable(modules, Output.LOGITS)),
    )


def _prompts(collected: Collected, tokens: int) -> tuple[torch.Tensor, ...]:
    """The first one, and more as long as they have not more tokens together."""
    found = [torch.from_numpy(prompt) for prompt in _spread(collected.prompts, MOST)]
    total = np.cumsum([prompt.shape[1] for prompt in found])
    return tuple(found[: max(1, int((total <= tokens).sum()))])


def _affordable(modules: dict[str, dict[str, Module]], output: Output) -> int:
    """How many frames or tokens may go through half of an output's modules for each of them."""
    some = [module.multiplications for graph in output.graphs for module in modules[graph].values()]
    return _MULTIPLICATIONS * 2 // (sum(some) * len(some))


def _spread(items: Sequence[T], count: int) -> list[T]:
    """So many of them, or all."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
