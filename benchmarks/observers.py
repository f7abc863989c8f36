"""Observers beside ONNX Runtime's: thresholds, what int8 loses with them, and the time they take.

Both sides get the same batches: ONNX Runtime through `create_calibrator` on a graph of one MatMul, for it
calibrates graphs, ours through `Histogram` and `step`. Its entropy runs with its own 128 bins, and with
4,096, which are of both signs: as many as our 2,048 of magnitudes.

python -m benchmarks.observers
"""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from benchmarks.report import Line, in_turn, publish
from llamavid.calibration.histogram import Histogram
from llamavid.calibration.observers import Observer, step
from llamavid.formats.eight_bits import EightBits

BATCHES, ROWS, CHANNELS = 4, 2048, 1408  # 11.5 million values, EVA-g's width
ROUNDS = 2
OUTLIER_GAINS = (20.0, 25.0, 30.0, 40.0, 50.0, 60.0)

THEIRS: dict[str, tuple[CalibrationMethod, dict[str, object]]] = {
    "MinMax": (CalibrationMethod.MinMax, {"symmetric": True}),
    "Percentile": (
        CalibrationMethod.Percentile,
        {"symmetric": True, "num_bins": 2048, "percentile": 99.99},
    ),
    "Entropy": (CalibrationMethod.Entropy, {}),
    "Entropy of 4,096 bins": (CalibrationMethod.Entropy, {"num_bins": 4096}),
}

Array = npt.NDArray[np.float32]


class Batches(CalibrationDataReader):
    """What ONNX Runtime reads its data from."""

    def __init__(self, batches: Sequence[Array]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._left, None)
        return None if batch is None else {"x": batch}


def main() -> None:
    lines = [line for name, batches in data() for line in _compared(name, batches)]
    publish("observers", "Observers beside ONNX Runtime's, int8", "python -m benchmarks.observers", lines)


def data() -> Iterator[tuple[str, list[Array]]]:
    """What activations look like, [ROWS, CHANNELS] a batch."""
    draw = np.random.default_rng(0)
    gains = draw.normal(1, 0.1, CHANNELS).astype(np.float32)
    gains[draw.choice(CHANNELS, len(OUTLIER_GAINS), replace=False)] = OUTLIER_GAINS
    kinds: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
        "Gaussian": lambda: draw.normal(size=(ROWS, CHANNELS)),
        "Student-t, 3 degrees": lambda: draw.standard_t(3, (ROWS, CHANNELS)),
        "GELU of a Gaussian": lambda: _gelu(draw.normal(0, 2, (ROWS, CHANNELS))),
        "LayerNorm, 6 outlier channels": lambda: draw.normal(size=(ROWS, CHANNELS)) * gains,
    }
    for name, one in kinds.items():
        yield name, [one().astype(np.float32) for _ in range(BATCHES)]


def _gelu(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return torch.nn.functional.gelu(torch.from_numpy(values)).numpy()


def _compared(data_name: str, batches: list[Array]) -> list[Line]:
    sides: dict[str, Callable[[], float]] = {
        f"ours, {observer.value}": functools.partial(_ours, observer, batches)
        for observer in Observer
        if observer is not Observer.OUTPUT  # which looks at weights too
    }
    for name, (method, options) in THEIRS.items():
        sides[f"ONNX Runtime, {name}"] = functools.partial(_theirs, method, options, batches)
    found: dict[str, float] = {}
    runs: dict[str, Callable[[], None]] = {
        side: functools.partial(_into, found, side, run) for side, run in sides.items()
    }
    spent = in_turn(runs, ROUNDS)
    return [
        Line(
            f"{data_name}: {side}",
            100 * _error(batches, found[side]),
            "% error",
            f"threshold {found[side]:.4g}, {statistics.median(spent[side]):,.0f} ms",
        )
        for side in sides
    ]


def _into(found: dict[str, float], side: str, run: Callable[[], float]) -> None:
    found[side] = run()


def _ours(observer: Observer, batches: list[Array]) -> float:
    histogram = Histogram()
    for batch in batches:
        histogram.add(torch.from_numpy(batch))
    return step(observer, histogram, EightBits.INT8).largest


def _theirs(method: CalibrationMethod, options: dict[str, object], batches: list[Array]) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        model = Path(folder) / "product.onnx"
        onnx.save(_product(), model)
        calibrator = create_calibrator(
            model, ["MatMul"], str(model.with_stem("watched")), calibrate_method=method, extra_options=options
        )
        calibrator.collect_data(Batches(batches))
        found = calibrator.compute_data().data["x"].range_value
    return float(np.abs(found).max())


def _product() -> onnx.ModelProto:
    """x [rows, CHANNELS] times one column."""
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", columns])
        for name, columns in (("x", CHANNELS), ("y", 1))
    )
    weight = numpy_helper.from_array(np.ones((CHANNELS, 1), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _error(batches: list[Array], threshold: float) -> float:
    """Norm of what int8 changes over the norm of the values."""
    scale = np.float32(threshold / EightBits.INT8.largest)
    values = np.stack(batches)
    changed = EightBits.INT8.nearest(values / scale) * scale - values
    return float(np.linalg.norm(changed) / np.linalg.norm(values))


if __name__ == "__main__":
    main()
