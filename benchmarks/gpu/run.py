"""The order of a run: what must hold comes first, what only adds lines comes last.

Takes a plan and a device, fills a report. Every step is one of the other files.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend

from benchmarks.gpu.attention import choose_attention, preferred
from benchmarks.gpu.ceiling import measure_ceilings
from benchmarks.gpu.compiling import why_not_compiled
from benchmarks.gpu.dimensions import SIZES, TINY_SIZES
from benchmarks.gpu.fast_language import Attention, FastLanguage
from benchmarks.gpu.fp8 import why_no_fp8
from benchmarks.gpu.frames import measured_row
from benchmarks.gpu.graphs import has_graphs
from benchmarks.gpu.headline import measure_headline
from benchmarks.gpu.hour import Hour, measure_hour
from benchmarks.gpu.language_times import context_of, measure_ours, measure_published
from benchmarks.gpu.musts import BATCH
from benchmarks.gpu.plain_language import PlainLanguage
from benchmarks.gpu.published import published_patches
from benchmarks.gpu.random_model import FrameNetworks, drawn, random_frames
from benchmarks.gpu.report import Report
from benchmarks.gpu.rewrites import choose_image
from benchmarks.gpu.truth import QUESTION_TOKENS, Truth, truth_of
from benchmarks.gpu.variants import (
    COMPILED_VARIANTS,
    LAST_VARIANTS,
    VARIANTS,
    Choices,
    Stages,
    Variant,
    stages,
)
from llamavid.config import ModelConfig
from llamavid.work import ENCODER, frame_work

_ROW_SECONDS = 5.0  # of one variant at one batch, when it is compiled


@dataclass(frozen=True)
class Plan:
    """What is measured. The batch of what must hold, and 1, come first."""

    config: ModelConfig
    batches: tuple[int, ...] = (BATCH, 1, 2, 4, 8, 16, 64)
    compiled_batches: tuple[int, ...] = (BATCH, 1)
    more_compiled_batches: tuple[int, ...] = (64, 8)  # if there is time at the end
    contexts: tuple[int, ...] = (256, 7200)
    hour_frames: int = 3600
    matrix_side: int = 8192
    copied_bytes: int = 4 << 30
    compiles: bool = True
    reserve_seconds: float = 150.0  # of the language model and the hour: what compiles before them leaves it

    @classmethod
    def of(cls, size: str, *, compiles: bool) -> Plan:
        """Of one of `SIZES`."""
        return (
            cls.tiny(size, compiles=compiles) if size in TINY_SIZES else cls(SIZES[size], compiles=compiles)
        )

    @classmethod
    def tiny(cls, size: str, *, compiles: bool = True) -> Plan:
        """Every step in seconds, on a CPU."""
        return cls(
            SIZES[size],
            batches=(2, 1),
            compiled_batches=(2,),
            more_compiled_batches=(),
            contexts=(16, 40),
            hour_frames=6,
            matrix_side=128,
            copied_bytes=1 << 20,
            compiles=compiles,
            reserve_seconds=0.0,
        )


class _Made(NamedTuple):
    """What the steps share."""

    networks: FrameNetworks  # float32
    truth: Truth
    choices: Choices
    kernel: SDPBackend | None


def run(report: Report, plan: Plan, device: torch.device) -> None:
    """Fills the report. What fails is in it, too."""
    if why := why_not_compiled(device) if plan.compiles else "it was asked not to be":
        report.skip("what torch.compile makes of either side", why)
        plan = replace(plan, compiles=False)
    report.say("ceilings")
    measure_ceilings(report, device, side=plan.matrix_side, copied_bytes=plan.copied_bytes)
    report.settings["encoder operations"] = frame_work(plan.config, QUESTION_TOKENS)[ENCODER].operations
    report.settings["question tokens"] = QUESTION_TOKENS

    made = None
    what = "random weights, and the truth in float32"
    report.say(what)
    with report.attempt(what):
        networks = random_frames(plan.config, device)
        made = _chosen(report, plan, networks, truth_of(networks, plan.config, max(plan.batches), device))
    if made is None:  # no figure counts without it
        report.failed = True
        return

    for variant in VARIANTS:
        _rows(report, made, variant, plan.batches)
    for variant in COMPILED_VARIANTS if plan.compiles else ():
        _rows(report, made, variant, plan.compiled_batches, reserve=plan.reserve_seconds)
    with report.attempt("both sides in turn"), preferred(made.kernel):
        measure_headline(report, made.networks, made.truth, made.choices, plan.batches[0])
    language = None
    with report.attempt("the language model"):
        language = _language(report, plan, device)
    if report.has_time("an hour of frames", seconds=25):
        with report.attempt("an hour of frames"), preferred(made.kernel):
            _hour(report, plan, made, language)
    del language
    if plan.compiles:
        for variant in LAST_VARIANTS:
            _rows(report, made, variant, plan.compiled_batches)
        _rows(report, made, COMPILED_VARIANTS[0], plan.more_compiled_batches)


def _chosen(report: Report, plan: Plan, networks: FrameNetworks, truth: Truth) -> _Made:
    """Kernel, head size and way to the image's keys, by measurement at the batch of what must hold."""
    batch = plan.batches[0]
    with torch.inference_mode():
        rows = published_patches(networks.vision, truth.pixels[:batch])
    head_size, kernel = None, None
    with report.attempt("the encoder's attention"):
        head_size, kernel = choose_attention(report, networks.vision.blocks[0], rows, torch.float16)  # type: ignore[arg-type]
    choices = Choices(head_size=head_size)
    with report.attempt("the rewrites"):
        image = choose_image(report, networks.to(torch.float16), truth, batch)
        choices = Choices(head_size, image)
    report.settings["head size of ours"] = head_size or "as it is"
    report.settings["attention kernel of ours"] = kernel.name.lower() if kernel else "as PyTorch chooses"
    report.settings["image of ours"] = choices.image.value
    return _Made(networks, truth, choices, kernel)


def _rows(
    report: Report, made: _Made, variant: Variant, batches: tuple[int, ...], *, reserve: float = 0.0
) -> None:
    """One variant at every batch that there is time, memory and hardware for."""
    device = made.truth.pixels.device
    if variant.graphed and not has_graphs(device):
        report.skip(variant.name, "no CUDA graphs here")
        return
    if variant.precision == "float8" and (why := why_no_fp8(device)):
        report.skip(variant.name, why)
        return
    seconds = _ROW_SECONDS + (variant.compile_seconds if device.type == "cuda" else 0.0)
    with report.attempt(variant.name), preferred(made.kernel) if variant.ours else nullcontext():
        prepared: Stages | None = None
        for batch in batches:
            what = f"{variant.name}, batch {batch}"
            if not report.has_time(what, seconds=seconds + reserve):
                continue
            prepared = prepared or _stages(made, variant)
            with report.attempt(what):
                report.add(measured_row(variant, prepared, made.truth, batch))


@torch.inference_mode()
def _stages(made: _Made, variant: Variant) -> Stages:
    truth = made.truth
    return stages(variant, made.networks.to(variant.dtype), truth.ids, truth.watched_pixels, made.choices)


def _language(report: Report, plan: Plan, device: torch.device) -> FastLanguage | None:
    """The last of ours stays for the hour, compiled where it may be; None where there was no time for any."""
    if not report.has_time("the language model", seconds=60):
        return None
    report.say("a language model of random weights, and its truth in float32")
    with torch.device("meta"):
        plain = PlainLanguage(plan.config.language)
    plain = drawn(plain, device, torch.float16, seed=7)
    contexts = [context_of(plain, tokens) for tokens in plan.contexts]
    for context in contexts:
        measure_published(report, plain, context)
    fast = None
    ways = [(Attention.KERNEL, False), (Attention.SPLIT, False)]
    for attention, compiled in ways + [(Attention.SPLIT, True)] * plan.compiles:
        fast = None  # its copies of weights are given back first
        fast = measure_ours(report, plain, contexts, attention=attention, compiled=compiled)
    return fast


@torch.inference_mode()
def _hour(report: Report, plan: Plan, made: _Made, language: FastLanguage | None) -> None:
    """Eagerly: at this batch the GPU is never waiting, and batches need not be of one size."""
    variant, batch = VARIANTS[1], plan.batches[0]
    hour = Hour(variant, _stages(made, variant), made.truth, language, plan.hour_frames, batch)
    measure_hour(report, hour)
