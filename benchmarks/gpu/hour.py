"""An hour of video, a frame a second: encoded once, asked twice; features on the card or on the host.

Frames come in the host's pinned memory, as a decoder leaves them, and are copied up while the batch before
is encoded. Features stay on the card (2.6 GB) or go down to the host, and come up again for every question.
The first question pays for the frames, the second does not; the language model reads 7,200 tokens for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.gpu.errors import BOUNDS, WHOLE, relative
from benchmarks.gpu.fast_language import FastLanguage
from benchmarks.gpu.report import Report, Value
from benchmarks.gpu.truth import Truth
from benchmarks.gpu.variants import Stages, Variant

T = TypeVar("T")

GROUP = "An hour of frames"
PROMPT_TOKENS = 60  # around the frames


@dataclass(frozen=True)
class Hour:
    """What is asked of it, and by whom."""

    variant: Variant
    stages: Stages
    truth: Truth  # its frames over and over; a multiple of `batch`
    language: FastLanguage | None
    frames: int
    batch: int


@torch.inference_mode()
def measure_hour(report: Report, hour: Hour) -> None:
    """Features on the card, then in the host's memory. The error is that of the frames' tokens."""
    device = hour.truth.pixels.device
    for where, memory in (("on the card", device), ("in the host's memory", torch.device("cpu"))):
        with report.attempt(f"an hour, features {where}"):
            for value in _values(hour, f"features {where}", memory):
                report.add(value)


def _values(hour: Hour, where: str, memory: torch.device) -> Iterator[Value]:
    truth, stages, batch = hour.truth, hour.stages, hour.batch
    device = truth.pixels.device
    pool = _on_host(truth.pixels.to(hour.variant.dtype))
    shape = (hour.frames, *truth.features.shape[1:])
    pinned = memory.type == "cpu" and device.type == "cuda"
    features = torch.empty(shape, dtype=hour.variant.dtype, device=memory, pin_memory=pinned)

    _encode(stages, pool, features[:batch], batch, device)  # compiled and allocated by now
    _ask(stages, features[:batch], batch, device)
    encoded, _ = _timed(lambda: _encode(stages, pool, features, batch, device), device)
    asked, tokens = _timed(lambda: _ask(stages, features, batch, device), device)
    compared = min(hour.frames, len(pool))
    errors = {"tokens": relative(tokens[:compared], truth.tokens[:compared])}
    bound = WHOLE * BOUNDS[hour.variant.precision]

    def value(what: str, seconds: float, note: str) -> Value:
        return Value(GROUP, f"{where}: {what}", seconds, "s", errors=errors, bound=bound, note=note)

    count = hour.frames
    yield value(f"{count:,} frames encoded", encoded, f"{1000 * encoded / count:.3f} ms a frame")
    yield value("their tokens for a question", asked, f"{1000 * asked / count:.3f} ms a frame")
    if hour.language is None:
        return
    language = hour.language
    _read(language, tokens)
    read, _ = _timed(lambda: _read(language, tokens), device)
    rows = tokens.shape[0] * tokens.shape[1] + PROMPT_TOKENS
    yield value(f"{rows:,} tokens read, first token", read, "")
    first, second = encoded + asked + read, asked + read
    yield value("first question, to its first token", first, "the sum of the three")
    yield value("second question, to its first token", second, f"{first / second:.1f} times sooner")


def _encode(stages: Stages, pool: Tensor, features: Tensor, batch: int, device: torch.device) -> None:
    start = 0
    for pixels in _coming_up(_cycled(pool, len(features), batch), device):
        features[start : start + len(pixels)].copy_(stages.encoder(pixels), non_blocking=True)
        start += len(pixels)


def _ask(stages: Stages, features: Tensor, batch: int, device: torch.device) -> Tensor:
    """Tokens [T, 1+n, D]; content too, which a first question computes and a second one might have kept."""
    chunks = features.split(batch) if features.device == device else _coming_up(features.split(batch), device)
    return torch.cat([_tokens(stages, each) for each in chunks])


def _tokens(stages: Stages, features: Tensor) -> Tensor:
    return torch.cat([stages.asked(features, stages.kept(features)), stages.content(features)], dim=1)


def _read(language: FastLanguage, tokens: Tensor) -> int:
    """The first token's id."""
    rows = tokens.flatten(0, 1).to(language.plain.lm_head.weight.dtype)
    text = rows.new_zeros(PROMPT_TOKENS, rows.shape[1])
    return int(language.prefill(torch.cat([rows, text])).argmax())


def _coming_up(batches: Iterator[Tensor] | tuple[Tensor, ...], device: torch.device) -> Iterator[Tensor]:
    """Each batch on the device; the next one is copied while the caller is at work with this one."""
    if device.type != "cuda":
        yield from batches
        return
    beside, before = torch.cuda.Stream(), None
    for batch in batches:
        with torch.cuda.stream(beside):
            coming = batch.to(device, non_blocking=True)
        done = beside.record_event()
        if before is not None:
            yield before
        torch.cuda.current_stream().wait_event(done)
        coming.record_stream(torch.cuda.current_stream())
        before = coming
    if before is not None:
        yield before


def _cycled(pool: Tensor, frames: int, batch: int) -> Iterator[Tensor]:
    """Batches of the pool, over and over; the pool's first frames are the video's first."""
    for start in range(0, frames, batch):
        at = start % len(pool)
        yield pool[at : at + min(batch, frames - start)]


def _on_host(pixels: Tensor) -> Tensor:
    on_host = pixels.cpu()
    return on_host.pin_memory() if pixels.device.type == "cuda" else on_host


def _timed(run: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds on the wall, copies and waiting among them, and what `run` gives."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result
