"""A bundle's graphs, each loaded when it is first needed, and what their tensors are."""

from __future__ import annotations

import numpy as np

from llamavid.bundle import GRAPHS, Bundle
from llamavid.contract import GraphContract
from llamavid.errors import DeviceError
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.memory import require_memory
from llamavid.runtime.timing import Timings


class Graphs:
    """One thread may use them at a time. Loading counts as the stage `load` of `timings`."""

    def __init__(self, bundle: Bundle, *, timings: Timings, threads: int | None = None) -> None:
        """`threads` of one operation; None lets ONNX Runtime choose."""
        self.bundle = bundle
        self._timings, self.threads = timings, threads
        self._loaded: dict[str, OnnxExecutor] = {}

    def load(self, graph: str) -> OnnxExecutor:
        """Raises `BundleError` where it cannot be loaded, `DeviceError` where memory does not suffice."""
        if graph not in self._loaded:
            self._require_kernels(graph)
            require_memory(
                self._weights_bytes(graph), f"graph {graph}", "Free some, or export with a smaller precision."
            )
            with self._timings.stage("load"):
                file = self.bundle.path(self.bundle.manifest.graphs[graph].file)
                self._loaded[graph] = OnnxExecutor(file, self.contract(graph), threads=self.threads)
        return self._loaded[graph]

    def _require_kernels(self, graph: str) -> None:
        if not runs_on_a_cpu(graph, self.bundle.manifest.graphs[graph].precision):
            raise DeviceError(
                f"graph {graph} of {self.bundle.folder} is bfloat16",
                expected="a type that ONNX Runtime's CPU multiplies",
                next_step="Build engines with `llamavid build`, or export with --precision fp16.",
            )

    def contract(self, graph: str) -> GraphContract:
        return self.bundle.manifest.graphs[graph].contract

    def dtype(self, graph: str, tensor: str) -> np.dtype:
        return self.contract(graph).spec(tensor).dtype.numpy

    def bytes_to_load(self) -> int:
        """Weights of the graphs that are not loaded yet."""
        return sum(self._weights_bytes(name) for name in GRAPHS if name not in self._loaded)

    def close(self) -> None:
        self._loaded.clear()

    def _weights_bytes(self, graph: str) -> int:
        """As they are in memory: ONNX Runtime widens bfloat16 ones to float32 while it loads."""
        manifest = self.bundle.manifest
        entry = manifest.graphs[graph]
        return manifest.files[entry.weights_file].size * (2 if entry.precision == "bf16" else 1)


def runs_on_a_cpu(graph: str, precision: str) -> bool:
    """ONNX Runtime has no bfloat16 kernels there. `llm`, its own language graph, only stores weights so.

    A precision is inside a graph: its boundary does not tell.
    """
    return precision != "bf16" or graph == "llm"
