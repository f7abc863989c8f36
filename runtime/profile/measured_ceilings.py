"""The ceilings of this machine's CPU, measured: a copy between two places in memory, a product per type.

A ceiling is the best of some rounds, not their median. A copy's bytes are those that are read and those that
are written; what the processor fetches before it writes over it is not counted, as in the modules' bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from llamavid.ceilings import Ceilings
from llamavid.runtime.executors import open_session
from llamavid.runtime.kernels import our_library
from llamavid.runtime.profile.machine_state import cores, processor
from llamavid.runtime.profile.product_graph import OUR_INT8, product_graph

_COPIED = 256 << 20  # bytes: more than any cache of the processors we know
_SIDE = 1536  # of a square product: 7 GFLOP, and near to the encoder's 1,408
_ROUNDS, _SECONDS = 12, 1.5
_TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


def cpu_ceilings(
    *, threads: int | None = None, on_step: Callable[[str], None] = lambda what: None
) -> Ceilings:
    """`threads` as the graphs have them; None: all cores."""
    on_step("measuring a memory copy")
    bandwidth = _copy_bandwidth(threads or cores())
    products = {}
    for precision, dtype in _TYPES.items():
        on_step(f"measuring {precision} products")
        products[precision] = _products(dtype, threads)
    if our_library():
        products["int8"] = max(products["int8"], _products(OUR_INT8, threads))
    # Where float16 has no instructions, ONNX Runtime widens it: float32's rate is what it can reach.
    products["fp16"] = max(products["fp16"], products["fp32"])
    return Ceilings(processor(), products, bandwidth, "measured here", is_cpu=True)


def _products(dtype: str, threads: int | None) -> float:
    """Operations a second inside ONNX Runtime."""
    graph, a = product_graph(dtype, _SIDE)
    session = open_session(graph, threads=threads)
    return 2 * _SIDE**3 / _best_seconds(lambda: session.run(None, {"a": a}))


def _copy_bandwidth(threads: int) -> float:
    """Bytes a second, read and written."""
    source, target = (np.ones(_COPIED // 8, np.float64) for _ in range(2))
    pieces = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return (
            2 * source.nbytes / _best_seconds(lambda: list(pool.map(lambda piece: np.copyto(*piece), pieces)))
        )


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    best, begin = float("inf"), time.perf_counter()
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begin > _SECONDS:
            break
    return best
