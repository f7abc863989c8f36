"""From what was watched and decided to the figures of a report. Draws nothing, reads no weight.

report = report_of(calibrated, checkpoint.config, options, made_from={...}, timer=timer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from llamavid.calibration.calibrate import Calibrated
from llamavid.calibration.modules import Module, graph_modules
from llamavid.calibration.observed import Observed
from llamavid.calibration.observers import Observer, step
from llamavid.calibration.options import CalibrationOptions
from llamavid.calibration.outputs import Output
from llamavid.calibration.report import (
    KEPT,
    Distribution,
    GraphFigure,
    ModuleFigure,
    ObserverFigure,
    Outlier,
    Report,
    SpeedFigure,
    worst_modules,
)
from llamavid.config import ModelConfig
from llamavid.formats.eight_bits import EightBits

Shape = tuple[int, int, int]
Timer = Callable[
    [Shape, str, int | None], tuple[float, float]
]  # shape, format, block -> seconds: float32, format

_DISTRIBUTIONS = 6  # in the pictures
_OUTLIERS = 8  # named of one module
_FLOAT16, _FLOAT32 = 2, 4  # bytes


def report_of(
    calibrated: Calibrated,
    config: ModelConfig,
    options: CalibrationOptions,
    *,
    made_from: Mapping[str, str],
    timer: Timer | None = None,
    why_untimed: Callable[[Shape, str], str] = lambda shape, format: "",
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """All figures.

    Args:
        made_from: what the report begins with, for people.
        timer: takes the time of one product on this machine; handed in, since this room runs no graphs.
        why_untimed: of what it shall not take the time, and why.
    """
    sizes = graph_modules(config)
    observed = [one for graph in calibrated.collected.graphs.values() for one in graph.observed.values()]
    compared: dict[int, dict[str, ObserverFigure]] = {}  # by histogram: queries, keys and values share one
    modules = []
    for index, one in enumerate(observed):
        on_progress("comparing observers", index, len(observed))
        if id(one.histogram) not in compared:
            compared[id(one.histogram)] = _observers(one, options.format_of(one.graph))
        observers = compared[id(one.histogram)]
        modules.append(_module(one, sizes[one.graph][one.module], calibrated, options, observers))
    figures = tuple(modules)
    speed, untimed = _speed(figures, options, timer, why_untimed, on_progress)
    return Report(
        dict(made_from),
        options.observer.value,
        tuple(_graph(graph, figures, calibrated, options) for graph in options.graphs),
        figures,
        tuple(speed),
        "; ".join(untimed),
        tuple(_distributions(figures, calibrated)),
    )


def _module(
    one: Observed,
    size: Module,
    calibrated: Calibrated,
    options: CalibrationOptions,
    observers: dict[str, ObserverFigure],
) -> ModuleFigure:
    planned = calibrated.plan.graphs[one.graph].modules[one.module]
    scales = calibrated.calibration.scales.graphs[one.graph]
    chosen = scales.steps.get(one.module)
    return ModuleFigure(
        graph=one.graph,
        module=one.module,
        format=KEPT if one.module in scales.kept else options.format_of(one.graph),
        shape=(size.rows, size.inputs, size.outputs),
        error=planned.error,
        largest=one.histogram.largest,
        threshold=chosen.largest if chosen else None,
        outliers=tuple(_outliers(one)),
        observers=observers,
    )


def _outliers(one: Observed) -> Iterator[Outlier]:
    usual = float(np.median(one.channels.largest))
    for channel in one.channels.outliers()[:_OUTLIERS]:
        largest = float(one.channels.largest[channel])
        yield Outlier(channel, largest / (usual or float(np.finfo(np.float32).tiny)))


def _observers(one: Observed, format: str) -> dict[str, ObserverFigure]:
    """What each would choose, and what that leaves of the sample; nothing where inputs are not rounded."""
    if format not in tuple(EightBits):
        return {}
    eight_bits, sample = EightBits(format), one.migrated_sample
    found = {}
    for observer in Observer:
        chosen = step(observer, one.histogram, eight_bits)
        found[observer.value] = ObserverFigure(chosen.largest, _error(sample, chosen.scale, eight_bits))
    return found


def _error(sample: npt.NDArray[np.float32], scale: float, format: EightBits) -> float:
    """Norm of what rounding changes, over the norm."""
    norm = float(np.linalg.norm(sample))
    changed = format.nearest(sample / np.float32(scale)) * np.float32(scale) - sample
    return float(np.linalg.norm(changed)) / norm if norm else 0.0


def _graph(
    graph: str, figures: tuple[ModuleFigure, ...], calibrated: Calibrated, options: CalibrationOptions
) -> GraphFigure:
    modules = [module for module in figures if module.graph == graph]
    rounded = [module for module in modules if module.format != KEPT]
    output = next(output for output in Output if graph in output.graphs)
    work = sum(module.multiplications for module in modules)
    return GraphFigure(
        graph=graph,
        format=options.format_of(graph),
        output=output.value.replace("_", " "),
        modules=len(modules),
        kept=len(modules) - len(rounded),
        share=sum(module.multiplications for module in rounded) / work if work else 0.0,
        bytes_before=sum(_bytes(module.shape, KEPT, None) for module in modules),
        bytes_after=sum(_bytes(module.shape, module.format, options.block_of(graph)) for module in modules),
        error=calibrated.plan.measured.get(output.value),
        budget=calibrated.plan.budgets.get(output.value),
    )


def _bytes(shape: Shape, format: str, block: int | None) -> int:
    """Of a weight [K, N] with its scales, which are float32."""
    _, k, n = shape
    if format == KEPT:
        return k * n * _FLOAT16
    if block is None:
        return k * n + n * _FLOAT32
    blocks = -(-k // block)
    return blocks * block * n // 2 + blocks * n * _FLOAT32


def _speed(
    figures: tuple[ModuleFigure, ...],
    options: CalibrationOptions,
    timer: Timer | None,
    why_untimed: Callable[[Shape, str], str],
    on_progress: Callable[[str, int, int], None],
) -> tuple[list[SpeedFigure], list[str]]:
    """Of each distinct shape and format, and why others are missing."""
    kinds: dict[tuple[Shape, str, int | None], int] = {}
    for module in figures:
        if module.format != KEPT:
            kind = (module.shape, module.format, options.block_of(module.graph))
            kinds[kind] = kinds.get(kind, 0) + 1
    found: list[SpeedFigure] = []
    untimed: dict[str, None] = {}
    for index, ((shape, format, block), count) in enumerate(kinds.items() if timer else ()):
        on_progress("timing products", index, len(kinds))
        if why := why_untimed(shape, format):
            untimed[why] = None
        elif timer:
            in_float32, in_format = timer(shape, format, block)
            found.append(SpeedFigure(shape, format, count, in_float32 * 1e3, in_format * 1e3))
    return found, list(untimed)


def _distributions(figures: tuple[ModuleFigure, ...], calibrated: Calibrated) -> Iterator[Distribution]:
    """Of the worst modules' inputs, an input that several modules read once. Rounded inputs come first."""
    shown: set[int] = set()
    for figure in sorted(worst_modules(figures, len(figures)), key=lambda figure: not figure.observers):
        one = calibrated.collected.graphs[figure.graph].observed[figure.module]
        if len(shown) == _DISTRIBUTIONS:
            return
        if id(one.histogram) in shown or one.histogram.largest == 0:
            continue
        shown.add(id(one.histogram))
        before = one.channels.largest
        after = before if one.divisor is None or not figure.observers else before / one.divisor
        bins = np.arange(len(one.histogram.counts) + 1) * one.histogram.width
        yield Distribution(one.graph, one.module, bins, one.histogram.counts.astype(float), before, after)
