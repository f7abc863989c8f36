"""The text-related part, one exact rewrite after the other: what each saves, and which way to the image pays.

Each line leaves one rewrite out of all of them, but for the ways to keys and values, which exclude each other
and stand side by side. Timed as CUDA graphs where there are some, so that what is compared is the GPU's work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.errors import BOUNDS, relative
from benchmarks.gpu.fast_context import FastContext
from benchmarks.gpu.fast_decoder import FastDecoder, Image, Rewrites
from benchmarks.gpu.graphs import captured, has_graphs
from benchmarks.gpu.random_model import FrameNetworks
from benchmarks.gpu.report import Report, Value
from benchmarks.gpu.timing import timed
from benchmarks.gpu.truth import Truth

GROUP = "The text-related part, rewrite by rewrite"
_ROUNDS = 15


@torch.inference_mode()
def choose_image(report: Report, networks: FrameNetworks, truth: Truth, batch: int) -> Image:
    """Measures, and gives the fastest way to keys and values that keeps nothing beside the features."""
    found: dict[Image, float] = {}
    for image in Image:
        what = f"keys and values: {image.value}"
        median = _measured(report, what, networks, truth, batch, Rewrites(image=image))
        if median is not None and image is not Image.KEPT:
            found[image] = median
    best = min(found, key=found.__getitem__, default=Image.ONE_PRODUCT)
    every = Rewrites(image=best)
    for name in ("question_once", "last_words", "one_product"):
        without = dataclasses.replace(every, **{name: False})  # type: ignore[arg-type]
        _measured(report, f"without {name.replace('_', ' ')}", networks, truth, batch, without)
    for name in ("folded_keys", "averaged_weights"):
        _measured(report, f"without {name.replace('_', ' ')}", networks, truth, batch, every, **{name: False})
    return best


def _measured(
    report: Report,
    what: str,
    networks: FrameNetworks,
    truth: Truth,
    batch: int,
    rewrites: Rewrites,
    **context_rewrites: bool,
) -> float | None:
    """Milliseconds a frame; None where it could not be measured, or does not count."""
    dtype = networks.compressor.key_projector.weight.dtype
    with report.attempt(what):
        features = truth.features[:batch].to(dtype)
        decoder = FastDecoder(networks.text_decoder, rewrites)
        context = FastContext(networks.compressor, **context_rewrites)  # type: ignore[arg-type]
        question = decoder.question(truth.ids)
        keeps = rewrites.image is Image.KEPT
        kept = decoder.image(features)

        def run() -> Tensor:
            return context(features, decoder(kept if keeps else decoder.image(features), question))

        handed_out = _handed_out(run, features.device)
        spent = timed(handed_out, features.device, rounds=_ROUNDS).times(1 / batch)
        bound = BOUNDS[str(dtype).removeprefix("torch.")]
        errors = {"context token": relative(handed_out(), truth.context[:batch])}
        note = f"and {kept[0].nbytes / 2**20:.2f} MiB a frame to keep" if keeps else ""
        value = Value(
            GROUP, what, spent.median, "ms a frame", spent.low, spent.high, errors, bound, note=note
        )
        report.add(value)
        return None if value.void else spent.median
    return None


def _handed_out(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    return captured(run).replay if has_graphs(device) else run
