"""A bundle's engine set as what a session runs on: encoder and decoder over engines that load when needed."""

from __future__ import annotations

from llamavid.bundle import Bundle
from llamavid.engines import Device, EngineSet, require_device, require_stamp
from llamavid.runtime.features.budget import features_beside_engines
from llamavid.runtime.features.memory import FeatureMemory
from llamavid.runtime.tensorrt.cuda import Cuda
from llamavid.runtime.tensorrt.engine import Engine
from llamavid.runtime.tensorrt.frames import EngineEncoder
from llamavid.runtime.tensorrt.language import EngineDecoder
from llamavid.runtime.tensorrt.library import TensorRt
from llamavid.runtime.tensorrt.measuring import EngineStages
from llamavid.runtime.timing import Timings


class OnGpu:
    """One bundle on one GPU. One thread at a time. Loading counts as the stage `load` of `timings`."""

    def __init__(
        self,
        bundle: Bundle,
        engines: EngineSet,
        device: Device,
        *,
        timings: Timings,
        memory_bytes: int | None = None,
    ) -> None:
        """Deserializes nothing yet, and asks before it ever does.

        Args:
            memory_bytes: what this process may hold on the host; None gives features a share of what is free.

        Raises:
            DeviceError: the set was built for another device or library.
            ParityError: it has no stamp of this device.
        """
        require_device(engines, device)
        self._stamp = require_stamp(engines, device)
        self.bundle, self.device, self._engines, self._timings = bundle, device, engines, timings
        self._cuda, self._tensorrt = Cuda(), TensorRt(device.library)
        self._loaded: dict[str, Engine] = {}
        self._decoder: EngineDecoder | None = None
        self.encoder = EngineEncoder(
            self._cuda,
            self._load,
            bundle.manifest.model,
            timings,
            spill=lambda: FeatureMemory(features_beside_engines(memory_bytes)),
        )

    @property
    def name(self) -> str:
        """What runs it, for people."""
        return f"{self.device.name}, {self.device.library.product} {self.device.version}"

    def decoder(self) -> EngineDecoder:
        if self._decoder is None:
            engine, language = self._load("llm"), self.bundle.manifest.model.language
            self._decoder = EngineDecoder(self._cuda, engine, language, self._engines.manifest.lowering)
        return self._decoder

    def stages(self) -> EngineStages:
        return EngineStages(
            self._cuda, self._tensorrt, self._load, self._engines, self._stamp.rows, self.device.name
        )

    def features_share(self, memory_bytes: int, *, cache_tokens: int) -> int:
        """Of the host's memory; caches lie on the GPU. Raises `DeviceError` where nothing is left."""
        return features_beside_engines(memory_bytes)

    def close(self) -> None:
        self.encoder.close()
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()

    def _load(self, stage: str) -> Engine:
        if stage not in self._loaded:
            with self._timings.stage("load"):
                self._loaded[stage] = Engine(self._cuda, self._tensorrt, self._engines, stage)
        return self._loaded[stage]
