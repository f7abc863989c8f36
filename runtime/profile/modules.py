"""Milliseconds a frame of encoder, content, decoder and context: the columns of the paper's Table 9.

Takes stages to time and pixels; knows nothing of what computes them. A round is one run of each graph, one
after the other as a session has them, so that a total has a spread of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.config import ModelConfig
from llamavid.elements import as_elements, as_float32
from llamavid.runtime.profile.document import TEXT_FREE, TEXT_RELATED, TOTAL, FrameFigures
from llamavid.runtime.profile.figures import figure, rounds_within
from llamavid.runtime.profile.stages import Inputs, Stages, repeated
from llamavid.work import CONTENT, CONTEXT, DECODER, ENCODER, frame_work

Array = npt.NDArray[Any]

_AT_LEAST, _AT_MOST = 20, 200  # rounds, as far as time allows


def frame_figures(
    stages: Stages,
    config: ModelConfig,
    pixels: Array,
    question_ids: npt.NDArray[np.int64],
    *,
    batch: int,
    frames: int,
    seconds: float,
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> FrameFigures:
    """Of runs of `batch` frames, at least `frames` of them in all where `seconds` suffice.

    Args:
        pixels: float32 [n, 3, S, S]; fewer than `batch` are repeated, which takes no less time.
        question_ids: int64 [1, L].

    Raises:
        DeviceError: the machine fails, or does not take such a batch.
    """
    inputs = _inputs(stages, repeated(pixels, batch), question_ids)
    work = frame_work(config, question_ids.shape[1])
    of_context = work[CONTEXT].operations / (work[DECODER].operations + work[CONTEXT].operations)
    split = stages.split(inputs["context"], by_operations=of_context)
    with ExitStack() as open_runs:
        timed = {name: stages.timed(name, given) for name, given in inputs.items()}
        for each in timed.values():
            open_runs.callback(each.close)
        rounds = rounds_within(
            lambda: {name: each.run() / batch for name, each in timed.items()},
            seconds,
            at_most=min(_AT_MOST, max(_AT_LEAST, -(-frames // batch))),
            on_round=on_round,
        )
    modules = {
        ENCODER: [each["vision"] for each in rounds],
        CONTENT: [each["content"] for each in rounds],
        TEXT_FREE: [each["vision"] + each["content"] for each in rounds],
        DECODER: [each["context"] * (1 - split.context) for each in rounds],
        CONTEXT: [each["context"] * split.context for each in rounds],
        TEXT_RELATED: [each["context"] for each in rounds],
        TOTAL: [sum(each.values()) for each in rounds],
    }
    return FrameFigures(batch, {name: figure(spent) for name, spent in modules.items()}, split.how)


def _inputs(stages: Stages, pixels: Array, question_ids: npt.NDArray[np.int64]) -> dict[str, Inputs]:
    """Of each stage, what the one before it gives."""
    contracts = stages.origin.contracts
    read = contracts["vision"].spec("pixels").dtype
    given = {"pixels": as_elements(pixels, read)}
    made = contracts["vision"].spec("features").dtype
    features = as_float32(stages.outputs("vision", given)["features"], made)
    content, context = (
        {"features": as_elements(features, contracts[stage].spec("features").dtype)}
        for stage in ("content", "context")
    )
    return {"vision": given, "content": content, "context": {**context, "question_ids": question_ids}}
