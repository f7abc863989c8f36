"""torch.compile, part by part: what a network repeats is compiled once and serves all its layers.

Whole networks compile to the same kernels, 39 blocks of them, in minutes; PyTorch's own advice for
transformers is to compile the repeated block ("regional compilation").
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]

# Shapes of batches and kinds of layers that one function is compiled for; the default of 8 would make the
# ninth run uncompiled, in silence.
_KINDS = 256


def why_not_compiled(device: torch.device) -> str:
    """Empty where compiling works; otherwise what is missing.

    For a GPU inductor writes Triton, which calls a C compiler for what launches its kernels. Many an image
    has PyTorch and none.
    """
    if device.type != "cuda":
        return ""
    if find_spec("triton") is None:
        return "triton is not installed"
    has_compiler = "CC" in os.environ or any(map(shutil.which, ("cc", "gcc", "clang")))
    return "" if has_compiler else "no C compiler is installed, which Triton calls"


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def compiled_for(device: torch.device) -> Compile:
    """What compiles for a GPU; elsewhere traces in the same way and generates no code."""
    return functools.partial(_compiled, backend="inductor" if device.type == "cuda" else "aot_eager")


@functools.cache
def _compiled(function: Callable[..., Any], *, backend: str) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = _KINDS
    torch._dynamo.config.accumulated_recompile_limit = 8 * _KINDS
    return torch.compile(function, backend=backend, dynamic=False, fullgraph=True)
