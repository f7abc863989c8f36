"""What this card does at most, as measured: a square product of random numbers by type, and a copy.

Random, not zeros: a product of zeros runs cooler, and faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.fp8 import E4M3, why_no_fp8
from benchmarks.gpu.report import Report, Value
from benchmarks.gpu.timing import timed, warm_up
from llamavid.runtime.profile.figures import Figure

GROUP = "Ceilings, measured"
_ROUNDS = 15


@torch.inference_mode()
def measure_ceilings(report: Report, device: torch.device, *, side: int, copied_bytes: int) -> None:
    """`side`: of the matrices. Settings get float16's operations and the copy's bytes a second."""
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        with report.attempt(f"{name} product"):
            a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
            product = partial(torch.matmul, a, b)
            warm_up(product, device)
            rate = _rate(report, f"{name} product, {side} a side", product, side, device)
            if dtype is torch.float16:
                report.settings["matrix ceiling"] = rate
    if why := why_no_fp8(device):
        report.skip("float8 product", why)
    else:
        with report.attempt("float8 product"):
            _rate(report, f"float8 product, {side} a side", _float8(side, device), side, device)
    with report.attempt("copy"):
        report.settings["bandwidth"] = _copy(report, copied_bytes, device)


def _rate(report: Report, what: str, run: Callable[[], Tensor], side: int, device: torch.device) -> float:
    """Operations a second."""
    spent = timed(run, device, rounds=_ROUNDS)
    report.add(_value(what, 2 * side**3 / 1e9, "TFLOP/s", spent))
    return 2 * side**3 / spent.median * 1000


def _float8(side: int, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randn(side, side, device=device).to(E4M3) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(
        a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.float16, use_fast_accum=True
    )


def _copy(report: Report, size: int, device: torch.device) -> float:
    """Bytes a second, read and written together."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = timed(lambda: target.copy_(source), device, rounds=_ROUNDS)
    report.add(_value(f"copy of {size >> 20} MiB, read and written", 2 * size / 1e9, "TB/s", spent))
    return 2 * size / spent.median * 1000


def _value(what: str, amount: float, unit: str, spent: Figure) -> Value:
    """`amount` in thousand millions, in so many milliseconds."""
    return Value(GROUP, what, amount / spent.median, unit, amount / spent.high, amount / spent.low)
