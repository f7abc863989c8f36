"""Graphs with marks, run by engines that are built of them here and now: what a bisection of an engine asks.

    with MarkedEngines(engines, "llm", compile_marked) as marked:
        outputs = marked(file, inputs)

Whoever compiles is handed in, since export and runtime do not know each other. The graph without marks is run
by the set's own engine. One engine is on the GPU at a time.

The static lowering's past and present get one address, as they have where the engine answers: it updates the
cache in place, and TensorRT refuses to run it with two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.contract import GraphContract
from llamavid.engines import EngineSet, Profile, require_device
from llamavid.errors import DeviceError
from llamavid.runtime.tensorrt.cuda import Cuda
from llamavid.runtime.tensorrt.device import this_device
from llamavid.runtime.tensorrt.engine import Built, Engine, bounds
from llamavid.runtime.tensorrt.executor import TensorRtExecutor
from llamavid.runtime.tensorrt.library import TensorRt

Array = npt.NDArray[Any]
Compile = Callable[[EngineSet, str, Path], tuple[Any, GraphContract]]  # set, stage, file -> engine, contract


class MarkedEngines:
    """Of one stage. Outputs by name, marks among them."""

    def __init__(self, engines: EngineSet, stage: str, own: Path, compile_marked: Compile) -> None:
        """Raises `DeviceError` where the set is not for this device.

        Args:
            own: the graph that the set's engine was built of.
        """
        library = engines.manifest.library
        require_device(engines, this_device(library))
        self._engines, self._stage, self._own, self._compile = engines, stage, own, compile_marked
        self._cuda, self._tensorrt = Cuda(), TensorRt(library)
        self._open: tuple[str, Engine] | None = None

    def __call__(self, file: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises what compiling raises, and `DeviceError` for shapes that no profile holds."""
        engine = self._engine(file)
        executor = TensorRtExecutor(
            self._cuda, engine, _profile(engine, inputs), in_place=_in_place(engine.contract)
        )
        try:
            return executor.run(inputs)
        finally:
            executor.close()

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._open = None

    def __enter__(self) -> MarkedEngines:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _engine(self, file: Path) -> Engine:
        """A marked graph is the same one in every folder, and takes minutes to build: once a name."""
        if self._open is not None and self._open[0] == file.name:
            return self._open[1]
        self.close()
        built = None
        if file != self._own:
            built = Built(*self._compile(self._engines, self._stage, file))
        engine = Engine(self._cuda, self._tensorrt, self._engines, self._stage, built)
        self._open = file.name, engine
        return engine


def _in_place(contract: GraphContract) -> dict[str, str]:
    names = {spec.name for spec in contract.inputs}
    pairs = ((spec.name, spec.name.replace("present.", "past.", 1)) for spec in contract.outputs)
    return {present: past for present, past in pairs if present.startswith("present.") and past in names}


def _profile(engine: Engine, inputs: Mapping[str, Array]) -> str:
    """The last that holds them: the one for single tokens is behind the one that holds them too."""
    for profile in reversed(engine.entry.profiles):
        if all(_holds(profile, engine, name, array) for name, array in inputs.items()):
            return profile.name
    shown = ", ".join(f"{name} {list(array.shape)}" for name, array in list(inputs.items())[:3])
    raise DeviceError(
        f"engine {engine.stage} has no profile for {shown}",
        next_step="Build the engines again with a wider profile, or pass --on cpu.",
    )


def _holds(profile: Profile, engine: Engine, name: str, array: Array) -> bool:
    smallest, largest = bounds(profile, engine.contract.spec(name))
    low, given, high = map(np.asarray, (smallest, array.shape, largest))
    return len(low) == len(given) and bool(((low <= given) & (given <= high)).all())
