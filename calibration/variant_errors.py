"""How far rounded variants of a model are from the exact one: all of them in one pass over the weights.

Takes a sample of what the model is given, and variants, each a set of modules that it rounds. Gives an error
a variant. Everything in float32, one block or layer in memory at a time, but for the text decoder and the
projectors, which are 0.8 GB at real dimensions.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llamavid.calibrated import Calibration, GraphCalibration
from llamavid.calibration.branch_state import BranchState
from llamavid.calibration.branches import Branches, Items, Variants, advance, graph_name, runs_left
from llamavid.calibration.outputs import Chosen, Output
from llamavid.errors import CheckpointError
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.compressor import Compressor, frame_tokens
from llamavid.model.qformer import TextDecoderModel
from llamavid.model.rounded import rounded
from llamavid.model.streamed import BATCH, Part, language_parts, token_networks, vision_parts
from llamavid.tokenizer import QuestionTokenizer

OnProgress = Callable[[str, int, int, str], None]  # what, done, total, note


class Sample(NamedTuple):
    """What errors are measured on."""

    pixels: Tensor  # float32 [F, 3, S, S], normalized
    questions: tuple[str, ...]
    sequences: tuple[Tensor, ...]  # prompts as embeddings, float32 [1, T, D] each, of the exact model


class Error(NamedTuple):
    """As in `llamavid.calibration.outputs.ModuleError`."""

    relative: float
    divergence: float | None = None


@torch.inference_mode()
def variant_errors(
    output: Output,
    checkpoint: Checkpoint,
    calibration: Calibration,
    sample: Sample,
    variants: Sequence[Chosen],
    *,
    what: str,
    on_progress: OnProgress,
    state: BranchState | None = None,
) -> list[Error]:
    """The error of each variant, in their order.

    Args:
        what: begins every line of progress.
        state: makes the pass over the blocks resumable.

    Raises:
        CheckpointError: the exact output is zero, or no number.
        ScalesError: a migration's vector does not fit, or the state cannot be written.
    """
    streamed = _logits if output is Output.LOGITS else _frame_tokens
    outputs = streamed(checkpoint, calibration, sample, variants, what, on_progress, state)
    with np.errstate(over="ignore", invalid="ignore"):  # a weight that overflows shows in the output
        _, exact = next(outputs)
        _require_numbers(output, exact)
        found = {variant: _error(output, exact, items) for variant, items in outputs}
    return [found[variant] for variant in range(len(variants))]


def _frame_tokens(
    checkpoint: Checkpoint,
    calibration: Calibration,
    sample: Sample,
    variants: Sequence[Chosen],
    what: str,
    on_progress: OnProgress,
    state: BranchState | None,
) -> Iterator[tuple[int, Items]]:
    """Frame tokens [Q F, 1+n, D] of the exact model, as variant -1, and then of every other."""
    names = ["vision", *(f"vision.blocks.{index}" for index in range(checkpoint.config.vision.depth))]
    branches = _streamed(
        lambda first: vision_parts(checkpoint, first=first),
        names,
        Branches((sample.pixels.float(),)),
        [variant.get("vision", ()) for variant in variants],
        calibration.graph("vision"),
        f"{what}: vision",
        on_progress,
        state,
    )
    decoder, compressor = token_networks(checkpoint)
    tokenizer = QuestionTokenizer(
        checkpoint.question_vocabulary, max_tokens=checkpoint.config.text_decoder.max_tokens
    )
    questions = [torch.from_numpy(tokenizer.ids(question)) for question in sample.questions]
    for done, variant in enumerate(range(-1, len(variants))):
        on_progress(f"{what}: frame tokens", done, len(variants) + 1, "")
        (features,) = branches.of(variant)
        chosen = variants[variant] if variant >= 0 else {}
        with _rounded_tokens(decoder, compressor, calibration, chosen):
            yield variant, (_tokens(decoder, compressor, features, questions),)
    on_progress(f"{what}: frame tokens", len(variants) + 1, len(variants) + 1, "")


def _logits(
    checkpoint: Checkpoint,
    calibration: Calibration,
    sample: Sample,
    variants: Sequence[Chosen],
    what: str,
    on_progress: OnProgress,
    state: BranchState | None,
) -> Iterator[tuple[int, Items]]:
    """Logits [1, T, V] of every sequence: of the exact model, as variant -1, and then of every other.

    The head runs a variant at a time: the logits of all would be gigabytes.
    """
    layers, graph = checkpoint.config.language.layers, calibration.graph("llm")
    names = [*(f"language.model.layers.{index}" for index in range(layers)), "language.model.norm"]
    chosen = [variant.get("llm", ()) for variant in variants]
    branches = _streamed(
        lambda first: language_parts(checkpoint, first=first),
        names,
        Branches(tuple(sequence.float() for sequence in sample.sequences)),
        chosen,
        graph,
        f"{what}: language model",
        on_progress,
        state,
    )
    (head,) = language_parts(checkpoint, first=len(names))
    for done, variant in enumerate(range(-1, len(variants))):
        on_progress(f"{what}: logits", done, len(variants) + 1, "")
        with contextlib.ExitStack() as around:
            if graph and variant >= 0:
                around.enter_context(rounded(head.module, "lm_head", graph, only=chosen[variant]))
            yield variant, tuple(head.run(rows) for rows in branches.of(variant))
    on_progress(f"{what}: logits", len(variants) + 1, len(variants) + 1, "")


def _streamed(
    parts_from: Callable[[int], Iterator[Part]],
    names: Sequence[str],
    branches: Branches,
    variants: Variants,
    calibration: GraphCalibration | None,
    what: str,
    on_progress: OnProgress,
    state: BranchState | None,
) -> Branches:
    """Every branch after the parts of those names, from where the state was left."""
    first, branches = (state and state.load()) or (0, branches)
    inner = [graph_name(name) for name in names]
    total = runs_left(inner, variants, 0)
    runs = total - runs_left(inner, variants, first)
    on_progress(what, runs, total, "")

    def on_run(more: int) -> None:
        nonlocal runs
        runs += more
        on_progress(what, runs, total, "")

    parts = itertools.islice(parts_from(first), len(names) - first)
    for done in advance(branches, parts, variants, calibration, on_run=on_run):
        if state:
            state.save(first + done, branches)
    return branches


@contextlib.contextmanager
def _rounded_tokens(
    decoder: TextDecoderModel, compressor: Compressor, calibration: Calibration, chosen: Chosen
) -> Iterator[None]:
    content, context = calibration.graph("content"), calibration.graph("context")
    with contextlib.ExitStack() as around:
        if context and (only := chosen.get("context")):
            around.enter_context(rounded(decoder, "text_decoder", context, only=only))
            around.enter_context(rounded(compressor, "compressor", context, only=only))
        if content and (only := chosen.get("content")):
            projector = compressor.content_projector
            around.enter_context(rounded(projector, "content_projector", content, only=only))
        yield


def _tokens(
    decoder: TextDecoderModel, compressor: Compressor, features: Tensor, questions: Sequence[Tensor]
) -> Tensor:
    """features [F, R, C] -> frame tokens [Q F, 1+n, D]."""
    rows = []
    for frames in features.split(BATCH):
        content = compressor.content_tokens(frames)
        for ids in questions:
            query = compressor.text_query(decoder(frames, ids))
            rows.append(frame_tokens(compressor.context_tokens(frames, query), content))
    return torch.cat(rows)


def _require_numbers(output: Output, exact: Items) -> None:
    norm = sum(float(items.double().square().sum()) for items in exact) ** 0.5
    if not 0 < norm < float("inf"):
        raise CheckpointError(
            f"the norm of the exact {output.value.replace('_', ' ')} is {norm}",
            expected="a number above 0",
            next_step="The checkpoint is damaged, or a frame is not a picture.",
        )


def _error(output: Output, exact: Items, found: Items) -> Error:
    """Both summed in float64."""
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(exact, found, strict=True))
    norm = sum(float(items.double().square().sum()) for items in exact)
    relative = (off / norm) ** 0.5
    if output is not Output.LOGITS:
        return Error(relative)
    pairs = [
        (F.log_softmax(a.double(), -1), F.log_softmax(b.double(), -1))
        for a, b in zip(exact, found, strict=True)
    ]
    nats = torch.cat([(p.exp() * (p - q)).sum(dim=-1).flatten() for p, q in pairs])
    return Error(relative, float(nats.mean().clamp_min(0)))  # rounding can make a zero negative
