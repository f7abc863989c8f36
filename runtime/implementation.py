"""Which code prepares pixels here: the compiled module or NumPy, and by which instructions.

LLAMAVID_PIXELS=numpy or native forces one of the two. The compiled one has several ways itself, one for each
kind of wide instructions; LLAMAVID_SIMD=scalar, avx2, avx512 or neon forces one of those. All give the same
bits. Our operators inside ONNX Runtime (`llamavid.runtime.kernels`) are of the compiled module and of avx512
too: where either variable names something else, ONNX Runtime's run.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

from llamavid.errors import DeviceError, UsageError

SIMD = ("scalar", "avx2", "avx512", "neon")

HOW_TO_GET_NATIVE = (
    "Reinstall llamavid where a C++17 compiler is (pip install --force-reinstall --no-deps --no-cache-dir)"
)


def implementation() -> str:
    """Which code prepares pixels here: "native" or "numpy".

    Raises:
        UsageError: LLAMAVID_PIXELS or LLAMAVID_SIMD is no such name.
        DeviceError: LLAMAVID_PIXELS=native where the compiled module is missing, or LLAMAVID_SIMD names
            instructions that this processor lacks.
    """
    return "numpy" if native_or_none() is None else "native"


def simd() -> str:
    """Which instructions the compiled code uses here, one of `SIMD`; "" on the NumPy path.

    Raises as `implementation` does.
    """
    native = native_or_none()
    return "" if native is None else simd_of(native)


def native_or_none() -> ModuleType | None:
    """The compiled module, or None for the NumPy path. Falling back is said once."""
    choice = os.environ.get("LLAMAVID_PIXELS", "")
    if choice not in ("", "numpy", "native"):
        raise UsageError(
            f"LLAMAVID_PIXELS is {choice!r}",
            expected="numpy or native",
            next_step="Unset it to let llamavid choose.",
        )
    if choice == "numpy":
        return None
    native, why_missing = _imported_native()
    if native is None and choice == "native":
        raise DeviceError(
            f"LLAMAVID_PIXELS is native, but the compiled module is missing ({why_missing})",
            next_step=f"{HOW_TO_GET_NATIVE}, or unset LLAMAVID_PIXELS.",
        )
    if native is None:
        _say_once(why_missing)
    return native


def simd_of(native: ModuleType) -> str:
    """What LLAMAVID_SIMD names, or the fastest that this processor has."""
    here: list[str] = native.simd_here()
    choice = os.environ.get("LLAMAVID_SIMD", "") or here[0]
    if choice in here:
        return choice
    if choice not in SIMD:
        raise UsageError(
            f"LLAMAVID_SIMD is {choice!r}",
            expected=", ".join(SIMD[:-1]) + f" or {SIMD[-1]}",
            next_step="Unset it to let llamavid choose.",
        )
    raise DeviceError(
        f"LLAMAVID_SIMD is {choice}, which this processor does not run",
        expected=" or ".join(here),
        next_step="Unset it to let llamavid choose.",
    )


@functools.cache
def _imported_native() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("llamavid.runtime._native"), ""
    except ImportError as error:
        return None, str(error)


@functools.cache
def _say_once(why_missing: str) -> None:
    warnings.warn(
        f"Pictures are prepared by NumPy: the compiled module, equal and faster, is missing ({why_missing}). "
        f"{HOW_TO_GET_NATIVE}; LLAMAVID_PIXELS=numpy silences this.",
        RuntimeWarning,
        stacklevel=4,
    )
