"""A bundle's frame engines, one at a time, timed by events on the GPU: the counterpart of
`llamavid.runtime.profile.stages.CpuStages`.

Inputs and outputs stay on the GPU; what is timed is the engine alone, without copies and without the host.
The first run with a shape prepares for it; whoever measures drops it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.bundle import FRAME_GRAPHS, ParityRow
from llamavid.ceilings import Ceilings
from llamavid.engines import EngineSet
from llamavid.runtime.profile.stages import Inputs, Origin, Split, split_of
from llamavid.runtime.tensorrt.buffers import DeviceBuffer, PinnedBuffer
from llamavid.runtime.tensorrt.cuda import Cuda, Stream, TimedEvent
from llamavid.runtime.tensorrt.engine import Engine, bounds, size_of
from llamavid.runtime.tensorrt.library import TensorRt
from llamavid.runtime.tensorrt.measured_ceilings import gpu_ceilings

Array = npt.NDArray[Any]

_FRAMES = "frames"  # the profile
_PROFILED_RUNS = 6  # the first warms up


class EngineStages:
    """One thread at a time. Engines are loaded by `load`, and stay with their owner."""

    def __init__(
        self,
        cuda: Cuda,
        tensorrt: TensorRt,
        load: Callable[[str], Engine],
        engines: EngineSet,
        stamped: tuple[ParityRow, ...],
        name: str,
    ) -> None:
        self._cuda, self._tensorrt, self._load, self._name = cuda, tensorrt, load, name
        self.origin = Origin.of(engines.manifest.engines, stamped, engines.digest)

    @property
    def largest_batch(self) -> int:
        """Frames of a run, of every frame engine."""
        return min(self._largest(stage) for stage in FRAME_GRAPHS)

    def ceilings(self, on_step: Callable[[str], None]) -> Ceilings:
        return gpu_ceilings(self._cuda, self._tensorrt, self._name, on_step)

    def outputs(self, stage: str, inputs: Inputs) -> dict[str, Array]:
        run = TimedRun(self._cuda, self._load(stage), inputs)
        try:
            run.run()
            return run.outputs()
        finally:
            run.close()

    def timed(self, stage: str, inputs: Inputs) -> TimedRun:
        return TimedRun(self._cuda, self._load(stage), inputs)

    def split(self, inputs: Inputs, *, by_operations: float) -> Split:
        run = TimedRun(self._cuda, self._load("context"), inputs)
        try:
            layers = run.layers(self._tensorrt)
        finally:
            run.close()
        return split_of(layers, by_operations, f"{self._tensorrt.library.product}'s time of each layer")

    def _largest(self, stage: str) -> int:
        engine = self._load(stage)
        return bounds(engine.profile(_FRAMES), engine.contract.inputs[0])[1][0]


class TimedRun:
    """One engine with inputs of one shape."""

    def __init__(self, cuda: Cuda, engine: Engine, inputs: Inputs) -> None:
        """Raises `DeviceError` where memory does not suffice, or the engine does not take that shape."""
        self._cuda, self._engine = cuda, engine
        self._context = engine.context(_FRAMES)
        self._stream = Stream(cuda)
        self._begin, self._end = TimedEvent(cuda), TimedEvent(cuda)
        self._context.set_shapes({name: array.shape for name, array in inputs.items()})
        self._buffers: dict[str, DeviceBuffer] = {}
        for spec in (*engine.contract.inputs, *engine.contract.outputs):
            size = size_of(spec, self._context.shape(spec.name))
            self._buffers[spec.name] = DeviceBuffer(cuda, size, f"{spec.name} of engine {engine.stage}")
        for name, array in inputs.items():
            self._upload(self._buffers[name], np.ascontiguousarray(array))
        self._context.set_addresses({name: buffer.address for name, buffer in self._buffers.items()})

    def run(self) -> float:
        """Once; milliseconds between the events around it."""
        self._begin.record(self._stream)
        self._context.enqueue(self._stream)
        self._end.record(self._stream)
        self._end.synchronize()
        return self._end.milliseconds_since(self._begin)

    def layers(self, tensorrt: TensorRt) -> dict[str, float]:
        """Milliseconds of each layer, by its name; medians of a few runs."""
        spent = defaultdict[str, list[float]](list)
        self.run()
        self._context.report_layers(_listener(tensorrt.api, spent))
        for _ in range(_PROFILED_RUNS):
            self.run()
        return {name: statistics.median(each[1:] or each) for name, each in spent.items()}

    def outputs(self) -> dict[str, Array]:
        """Of the last run, on the host."""
        found = {}
        for spec in self._engine.contract.outputs:
            shape = self._context.shape(spec.name)
            staging = PinnedBuffer(self._cuda, size_of(spec, shape))
            self._stream.copy(staging.address, self._buffers[spec.name].address, size_of(spec, shape))
            self._stream.synchronize()
            found[spec.name] = staging.view(spec.dtype.numpy, shape).copy()
            staging.close()
        return found

    def close(self) -> None:
        self._stream.close()
        self._context.close()
        for event in (self._begin, self._end):
            event.close()
        for buffer in self._buffers.values():
            buffer.close()

    def _upload(self, target: DeviceBuffer, array: Array) -> None:
        staging = PinnedBuffer(self._cuda, array.nbytes)
        staging.view(array.dtype, array.shape)[...] = array
        self._stream.copy(target.address, staging.address, array.nbytes)
        self._stream.synchronize()
        staging.close()


def _listener(api: Any, spent: dict[str, list[float]]) -> Any:
    class Listener(api.IProfiler):
        """Called by TensorRT after each run."""

        def __init__(self) -> None:
            api.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            spent[layer_name].append(ms)

    return Listener()
