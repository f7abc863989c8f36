"""Layers of a language model at Vicuna-7B's width: random, and the same numbers for whoever reads them.

    language = vicuna(layers=3, vocab_size=2048)
    executor = OnnxExecutor(write_llm(folder, language, int4_precision(32)), contract)

A weight is drawn from its name, so that two precisions, or another program, hold one model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llamavid.calibrated import GraphCalibration
from llamavid.config import LanguageConfig
from llamavid.contract import DType, Lowering, language_contract
from llamavid.export.builder import GraphBuilder
from llamavid.export.language import OPSET_OF, write_language
from llamavid.export.layers import Array, Layers
from llamavid.export.precision import Precision
from llamavid.export.rewrites import PAYING
from llamavid.scales import GraphScales

_NORM_STD = 0.1
_LARGEST = 6.0  # of keys and values, which are about normal


def vicuna(*, layers: int, vocab_size: int) -> LanguageConfig:
    """Vicuna-7B's widths, with the context of the long-video model cut to an hour."""
    return LanguageConfig(
        hidden=4096,
        layers=layers,
        heads=32,
        kv_heads=32,
        head_dim=128,
        mlp_width=11008,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_factor=16.0,
        context_length=8192,
    )


def write_llm(
    folder: Path, language: LanguageConfig, precision: Precision, lowering: Lowering = Lowering.ONNX_RUNTIME
) -> Path:
    """`llm.onnx`, written as `llamavid export` writes it."""
    contract = language_contract(language, precision.compute, lowering, cache=precision.cache)
    ranges = _cache_ranges(language, precision) if precision.cache is DType.INT8 else None
    with GraphBuilder("llm", contract, folder, opset=OPSET_OF[lowering]) as g:
        layers = Layers(g, random_reader(language), precision, calibration=ranges, rewrites=PAYING)
        write_language(layers, language, lowering)
        return g.save()


def _cache_ranges(language: LanguageConfig, precision: Precision) -> GraphCalibration:
    ranges = {f"model.layers.{index}.self_attn": _LARGEST for index in range(language.layers)}
    scales = GraphScales(precision.name, block=precision.int4_block, keys=ranges, values=ranges)
    return GraphCalibration(scales, {})


def random_reader(language: LanguageConfig) -> Callable[[str], Array]:
    """Gives a weight, float32, by its name in our modules: outputs about as large as inputs, norms near 1."""

    def read(name: str) -> Array:
        shape, seed = _shape(name, language), hashlib.sha256(name.encode()).digest()[:8]
        drawn = np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(shape, np.float32)
        drawn *= _NORM_STD if len(shape) == 1 else shape[1] ** -0.5
        return drawn + np.float32(1) if len(shape) == 1 else drawn

    return read


def _shape(name: str, language: LanguageConfig) -> tuple[int, ...]:
    """[outputs, inputs], or [width] of a norm."""
    width, mlp = language.hidden, language.mlp_width
    if "norm" in name:
        return (width,)
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    shapes = {
        "gate_proj": (mlp, width),
        "up_proj": (mlp, width),
        "down_proj": (width, mlp),
        "lm_head": (language.vocab_size, width),
    }
    return shapes.get(leaf, (width, width))
