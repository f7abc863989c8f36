"""The runtime as verify sees it, on engines: what they compute on this device, through the code that answers.

Export may not import the runtime, so the command line hands it this. No stamp is asked for, since these runs
are what a stamp is given for; the device is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.config import LanguageConfig
from llamavid.engines import EngineSet, require_device
from llamavid.runtime.tensorrt.cuda import Cuda
from llamavid.runtime.tensorrt.device import this_device
from llamavid.runtime.tensorrt.engine import Engine
from llamavid.runtime.tensorrt.executor import TensorRtExecutor
from llamavid.runtime.tensorrt.language import EngineDecoder
from llamavid.runtime.tensorrt.library import TensorRt

FRAMES = "frames"  # the profile of the frame engines


class EngineRunner:
    """A set's engines, each deserialized once, for many runs."""

    def __init__(self, engines: EngineSet) -> None:
        """Raises `DeviceError` where this is not the device, or the library, that they were built for."""
        library = engines.manifest.library
        require_device(engines, this_device(library))
        self._engines, self._cuda, self._tensorrt = engines, Cuda(), TensorRt(library)
        self._opened: dict[str, Engine] = {}
        self._executors: dict[str, TensorRtExecutor] = {}
        self._decoder: EngineDecoder | None = None

    def run_graph(self, stage: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The outputs of a frame engine, by name. Raises `DeviceError` for a shape outside its profile."""
        if stage not in self._executors:
            self._executors[stage] = TensorRtExecutor(self._cuda, self._engine(stage), FRAMES)
        return self._executors[stage].run(inputs)

    def run_language(
        self, language: LanguageConfig, chunks: Sequence[npt.NDArray[Any]]
    ) -> npt.NDArray[np.float32]:
        """Logits [len(chunks), V] after each chunk [1, T, D] of one sequence, through one cache."""
        decoder = self.decoder(language)
        cache = decoder.new_cache(sum(chunk.shape[1] for chunk in chunks))
        try:
            rows = [
                decoder.decode_one(cache, chunk[0, 0])
                if chunk.shape[1] == 1
                else decoder.prefill(cache, chunk)
                for chunk in chunks
            ]
        finally:
            cache.close()
        return np.stack(rows).astype(np.float32, copy=False)

    def decoder(self, language: LanguageConfig) -> EngineDecoder:
        """The language engine, as sessions use it."""
        if self._decoder is None:
            lowering = self._engines.manifest.lowering
            self._decoder = EngineDecoder(self._cuda, self._engine("llm"), language, lowering)
        return self._decoder

    def close(self) -> None:
        for executor in self._executors.values():
            executor.close()
        if self._decoder is not None:
            self._decoder.close()
        for engine in self._opened.values():
            engine.close()

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _engine(self, stage: str) -> Engine:
        if stage not in self._opened:
            self._opened[stage] = Engine(self._cuda, self._tensorrt, self._engines, stage)
        return self._opened[stage]


def run_engine_graph(
    engines: EngineSet, stage: str, inputs: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """As `EngineRunner.run_graph`, of an engine that is opened for this run alone."""
    with EngineRunner(engines) as runner:
        return runner.run_graph(stage, inputs)


def run_engine_language(
    engines: EngineSet, language: LanguageConfig, chunks: Sequence[npt.NDArray[Any]]
) -> npt.NDArray[np.float32]:
    """As `EngineRunner.run_language`, of an engine that is opened for this run alone."""
    with EngineRunner(engines) as runner:
        return runner.run_language(language, chunks)
