"""What a TensorRT-LLM checkpoint is to be, and whether the model and the GPU can have it so."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llamavid.config import LanguageConfig
from llamavid.errors import UsageError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
QUANT_ALGOS = {"none": None, "int8": "W8A16", "int4-awq": "W4A16_AWQ", "fp8": "FP8"}
KV_CACHE_ALGOS = {"none": None, "int8": "INT8", "fp8": "FP8"}
TENSOR_PARALLEL = (1, 2, 4)
GROUPS = (128, 64)
TARGETS = {"a100": (8, 0), "l40s": (8, 9), "h100": (9, 0), "h200": (9, 0)}  # compute capability
_FP8_FROM = (8, 9)


@dataclass(frozen=True)
class TrtllmOptions:
    """Raises `UsageError` for what does not exist, or not on the target."""

    dtype: str = "float16"
    tensor_parallel: int = 1
    quantize: str = "none"  # none, int8 (weights only), int4-awq, fp8
    kv_cache: str = "none"  # none, int8, fp8
    int4_group: int = 128  # columns that share a scale
    target: str = "a100"
    replace: bool = False  # an existing folder of ours

    def __post_init__(self) -> None:
        for option, given, choices in (
            ("dtype", self.dtype, DTYPES),
            ("tensor-parallel", self.tensor_parallel, TENSOR_PARALLEL),
            ("quantize", self.quantize, QUANT_ALGOS),
            ("kv-cache", self.kv_cache, KV_CACHE_ALGOS),
            ("int4-group", self.int4_group, GROUPS),
            ("target", self.target, TARGETS),
        ):
            if given not in choices:
                raise UsageError(f"{option} {given!r}", expected=" or ".join(map(str, choices)))
        if "fp8" in (self.quantize, self.kv_cache) and TARGETS[self.target] < _FP8_FROM:
            with_fp8 = " or ".join(name for name, version in TARGETS.items() if version >= _FP8_FROM)
            what = "quantize fp8" if self.quantize == "fp8" else "kv-cache fp8"
            raise UsageError(
                f"{what} for {self.target}, compute capability {'.'.join(map(str, TARGETS[self.target]))}",
                expected=f"a GPU with fp8: --target {with_fp8}",
                next_step="For this one choose --quantize int8 or int4-awq, and --kv-cache none.",
            )


def check_model(language: LanguageConfig, options: TrtllmOptions) -> None:
    """Raises `UsageError` where the model cannot be split or grouped as `options` say."""
    ranks, group = options.tensor_parallel, options.int4_group
    for what, count in (
        ("attention heads", language.heads),
        ("key-value heads", language.kv_heads),
        ("MLP columns", language.mlp_width),
    ):
        if count % ranks:
            fitting = ", ".join(str(n) for n in TENSOR_PARALLEL if _divides(language, n))
            raise UsageError(
                f"tensor-parallel {ranks} for {count} {what}",
                expected="a number that divides them",
                next_step=f"This model can have --tensor-parallel {fitting}.",
            )
    if options.quantize == "int4-awq":
        for columns in (
            language.hidden,
            language.heads * language.head_dim // ranks,
            language.mlp_width // ranks,
        ):
            if columns % group:
                raise UsageError(
                    f"int4-awq in groups of {group}, with a matrix of {columns} columns on each GPU",
                    expected=f"a multiple of {group}",
                    next_step="Choose --int4-group 64, fewer GPUs, or --quantize int8.",
                )


def _divides(language: LanguageConfig, ranks: int) -> bool:
    return not any(count % ranks for count in (language.heads, language.kv_heads, language.mlp_width))
