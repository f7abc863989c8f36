"""The stopwatch of the calibration report: one product of a shape here, in a format and in float32."""

from __future__ import annotations

from pathlib import Path

Shape = tuple[int, int, int]  # rows, K, N

# A float32 weight of 256 MB; the file of it, and what quantizing it takes, are several times as much.
_MOST_WEIGHTS = 1 << 26


def machine() -> str:
    """What the times are of."""
    import os
    import platform
    from importlib.metadata import version

    return f"{platform.machine()}, {os.cpu_count()} cores, ONNX Runtime {version('onnxruntime')}"


def why_untimed(shape: Shape, format: str) -> str:
    """Why a product is not timed here; "" when it is."""
    if format == "fp8":
        return "fp8 is not timed: no CPU multiplies in it"
    if shape[1] * shape[2] > _MOST_WEIGHTS:
        return f"weights of {shape[1]} x {shape[2]} are not timed: they would fill the disk for no new answer"
    return ""


def timed(shape: Shape, format: str, block: int | None) -> tuple[float, float]:
    """Seconds in float32, and in the format; one after the other, again and again, the median of each."""
    from tempfile import TemporaryDirectory

    from llamavid.export.one_product import write_product
    from llamavid.export.precision import FP32, INT8, int4_precision
    from llamavid.runtime.one_product import median_seconds

    precision = int4_precision(block or 32) if format == "int4" else INT8
    with TemporaryDirectory() as folder:
        files = [write_product(Path(folder), shape, each) for each in (FP32, precision)]
        in_float32, in_format = median_seconds(files)
    return in_float32, in_format
