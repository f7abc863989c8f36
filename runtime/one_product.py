"""How long small graphs take on this machine's CPU, side by side.

Takes ONNX files, gives seconds. They take turns: what else the machine does, and the clock that falls as it
warms up, meets all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from llamavid.runtime.executors import open_session

_WARM_UP, _FEWEST, _MOST = 2, 5, 200


def median_seconds(files: Sequence[Path], *, budget_seconds: float = 0.5) -> list[float]:
    """The median time of a run of each graph, whose inputs are float32 of fixed shapes.

    Args:
        budget_seconds: for all of them together; five runs each at least, whatever they take.

    Raises:
        BundleError: ONNX Runtime cannot load one.
    """
    runs = []
    for file in files:
        session = open_session(file)
        draw = np.random.default_rng(0).standard_normal
        runs.append((session, {one.name: draw(one.shape, np.float32) for one in session.get_inputs()}))
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(_WARM_UP + _MOST):
        for (session, inputs), times in zip(runs, taken, strict=True):
            start = time.perf_counter()
            session.run(None, inputs)
            times.append(time.perf_counter() - start)
        if turn >= _WARM_UP + _FEWEST - 1 and sum(map(sum, taken)) > budget_seconds:
            break
    return [median(times[_WARM_UP:]) for times in taken]
