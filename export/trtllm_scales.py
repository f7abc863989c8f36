"""What calibration found out about the language model, by TensorRT-LLM's names.

int4-awq multiplies a matrix's input by its `prequant_scaling_factor`: migrations become those, and
normalizations stay as they are. fp8 has no such factor: there migrations go into the weights, as in our own
graphs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llamavid.calibrated import Calibration, GraphCalibration
from llamavid.config import LanguageConfig
from llamavid.errors import ScalesError
from llamavid.export.trtllm_formats import TrtllmScales
from llamavid.export.trtllm_options import TrtllmOptions
from llamavid.export.trtllm_weights import Linear, linears
from llamavid.scales import AGAIN

FORMAT_OF = {"int4-awq": "int4", "fp8": "fp8"}  # what the scales must be for


def trtllm_scales(calibration: Calibration, language: LanguageConfig, options: TrtllmOptions) -> TrtllmScales:
    """Raises `ScalesError` where the scales are for another format, or leave out what the options need."""
    found = calibration.graph("llm")
    wanted = FORMAT_OF.get(options.quantize)
    if found is None or wanted not in (None, found.scales.format):
        given = found.scales.format if found else "nothing"
        raise ScalesError(
            f"the scales have {given} for graph llm",
            expected=f"{wanted or 'the ranges of its cache'} (--quantize {options.quantize})",
            next_step=f"Make them: llamavid calibrate --llm-format {wanted or 'int4'}.",
        )
    return TrtllmScales(
        prequant=dict(_prequant(found, language)) if wanted == "int4" else {},
        importance=dict(_importance(found, language)) if wanted == "int4" else {},
        activation=dict(_activation(found, language)) if wanted == "fp8" else {},
        kv_cache=dict(_cache(found, migrated=wanted == "fp8")) if options.kv_cache != "none" else {},
        migrated=found if wanted == "fp8" else None,
    )


def _prequant(found: GraphCalibration, language: LanguageConfig) -> Iterator[tuple[str, Tensor]]:
    for linear in linears(language):
        divisor = found.input_divisor(_module(linear))
        if divisor is not None:
            yield linear.scales, torch.from_numpy(1 / divisor)


def _importance(found: GraphCalibration, language: LanguageConfig) -> Iterator[tuple[str, Tensor]]:
    for linear in linears(language):
        importance = found.importance(_module(linear))
        if importance is not None:
            yield linear.scales, torch.from_numpy(importance.copy())


def _activation(found: GraphCalibration, language: LanguageConfig) -> Iterator[tuple[str, float]]:
    for linear in linears(language):
        steps = [found.scales.steps.get(_module(linear, index)) for index in range(len(linear.sources))]
        known = [step.largest for step in steps if step]
        if len(known) < len(steps):
            raise ScalesError(
                f"the scales have no range for what enters {linear.name}",
                expected="one for every product: TensorRT-LLM's fp8 leaves none out",
                next_step="Calibrate without --llm-budget and --plan.",
            )
        yield linear.scales, max(known)


def _cache(found: GraphCalibration, *, migrated: bool) -> Iterator[tuple[str, float]]:
    """Of values as the engine keeps them: divided where a migration went into their weights."""
    if not found.scales.cache:
        raise ScalesError("the scales have no ranges of the key-value cache", next_step=AGAIN)
    ranges = found.scales.cache | (found.scales.migrated_cache if migrated else {})
    for name, largest in ranges.items():
        index = name.removeprefix("model.layers.").removesuffix(".self_attn")
        yield f"transformer.layers.{index}.attention", largest


def _module(linear: Linear, index: int = 0) -> str:
    """Of our graph: what a source is without its place in the checkpoint. All of a matrix share an input."""
    return linear.sources[index].removeprefix("language.").removesuffix(".weight")
