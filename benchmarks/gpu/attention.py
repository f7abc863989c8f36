"""The encoder's attention: which kernel, and whether its head size 88 is worth padding to 96 or 128.

No attention kernel is written for 88: one that takes it computes with 96 or 128 columns, and some refuse it.
Padding in the weights hands whole columns over, and makes the products before and after wider. So the
kernels are timed alone, and a whole block decides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.errors import BOUNDS, relative
from benchmarks.gpu.fast_encoder import FastBlock
from benchmarks.gpu.report import Report, Value
from benchmarks.gpu.timing import timed
from llamavid.model.vision import Block

GROUP = "Attention of the encoder"
BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
# What PyTorch says where a kernel does not take these heads, by its version, its device and the kernel.
NO_KERNEL = ("No available kernel", "No viable backend", "cuDNN Frontend error")
_PADDED = (None, 96, 128)
_ROUNDS = 15


def preferred(backend: SDPBackend | None) -> AbstractContextManager[None]:
    """Attention by this kernel where it can, by any other where not; None: as PyTorch chooses."""
    if backend is None:
        return nullcontext()
    others = [each for each in BACKENDS if each is not backend]
    return sdpa_kernel([backend, *others], set_priority=True)


@torch.inference_mode()
def choose_attention(
    report: Report, block: Block, rows: Tensor, dtype: torch.dtype
) -> tuple[int | None, SDPBackend | None]:
    """Measures every kernel and every head size on `rows` float32 [T, R, C] and gives the fastest block's.

    `block`: the plain one in float32; it stays as it is.
    """
    fastest: dict[tuple[int | None, SDPBackend], float] = {}
    with sdpa_kernel(SDPBackend.MATH):  # a fused kernel of float32 may multiply in less
        expected = block(rows)
    typed = copy.deepcopy(block).to(dtype)
    for size in _PADDED:
        backend = _fastest_kernel(report, block, rows, dtype, size)
        if backend is None:
            continue
        what = f"a whole block, heads of {size or _head_size(block)}, {backend.name.lower()}"
        with report.attempt(what), preferred(backend):
            run = partial(FastBlock(typed, size), rows.to(dtype))
            value = _value(what, run, expected, dtype)
            report.add(value)
            if not value.void:
                fastest[size, backend] = value.value
    return min(fastest, key=fastest.__getitem__, default=(None, None))


def _fastest_kernel(
    report: Report, block: Block, rows: Tensor, dtype: torch.dtype, size: int | None
) -> SDPBackend | None:
    heads, real = block.attn.heads, _head_size(block)
    width = size or real
    random = torch.Generator(rows.device).manual_seed(0)
    qkv = torch.randn(len(rows), rows.shape[1], 3 * heads * width, device=rows.device, generator=random).to(
        dtype
    )
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q.float() @ k.float().transpose(-1, -2) * real**-0.5
    expected = scores.softmax(dim=-1) @ v.float()
    del scores
    run = partial(F.scaled_dot_product_attention, q, k, v, scale=real**-0.5)
    found: dict[SDPBackend, float] = {}
    for backend in BACKENDS:
        what = f"attention alone, heads of {width}, {backend.name.lower()}"
        with report.attempt(what), sdpa_kernel(backend):
            try:
                value = _value(what, run, expected, dtype)
            except RuntimeError as error:
                if not any(words in str(error) for words in NO_KERNEL):
                    raise
                report.skip(what, "PyTorch has no such kernel for these heads here")
                continue
            report.add(value)
            if not value.void:
                found[backend] = value.value
    return min(found, key=found.__getitem__, default=None)


def _value(what: str, run: Callable[[], Tensor], expected: Tensor, dtype: torch.dtype) -> Value:
    errors = {"result": relative(run(), expected)}
    spent = timed(run, expected.device, rounds=_ROUNDS)
    bound = BOUNDS[str(dtype).removeprefix("torch.")]
    return Value(GROUP, what, spent.median, "ms", spent.low, spent.high, errors, bound)


def _head_size(block: Block) -> int:
    return block.attn.proj.weight.shape[0] // block.attn.heads
