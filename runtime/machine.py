"""What a session runs on: ONNX Runtime on the CPU, or a bundle's engines on the GPU.

`open_machine` chooses, once. Sessions know the protocols here and nothing of what is behind them: what an
encoder makes, its decoder takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from llamavid.bundle import GRAPHS, Bundle
from llamavid.engines import engine_sets
from llamavid.errors import BundleError, DeviceError, ParityError
from llamavid.runtime.assembly import FrameTokens
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.encoder import FrameEncoder
from llamavid.runtime.evidence import EvidenceCollector
from llamavid.runtime.features.budget import features_share
from llamavid.runtime.features.watched import FrameFeatures
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.frames import FrameTime
from llamavid.targets import THIS

if TYPE_CHECKING:
    from llamavid.runtime.profile.stages import Stages

CPU = "cpu"

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]


class Tokens(Protocol):
    """Frames in the light of a question, wherever they lie."""

    @property
    def frame_count(self) -> int: ...

    def frame(self, at: int) -> Any:
        """One frame's, which outlive the others."""
        ...

    def joined(self, others: Sequence[Any]) -> Any: ...

    def on_host(self) -> FrameTokens: ...


class Encoder(Protocol):
    """Pixels to features, and these to a question's tokens."""

    encoded: int

    @property
    def batch(self) -> int | None:
        """Frames a run; None where the caller may choose."""
        ...

    def memory(self, *, frames: int, memory_bytes: int | None) -> Any:
        """What `remember` fills with a video of about so many frames, 0 where it does not say."""
        ...

    def remember(self, memory: Any, pixels: Array, frames: Sequence[FrameTime]) -> None: ...

    def see(self, pixels: Array, frames: Sequence[FrameTime]) -> FrameFeatures:
        """A stream's new frames, good until the next call."""
        ...

    def adopt(self, features: Array, *, batch: int) -> FrameFeatures:
        """Stored features."""
        ...

    def prepare_context(self) -> None:
        """Loads what `tokens` needs, so that its time is its own."""
        ...

    def tokens(
        self,
        held: FrameFeatures,
        question_ids: Ids,
        *,
        batch: int,
        collector: EvidenceCollector | None = None,
    ) -> Any: ...


class LanguageDecoder(Protocol):
    """Embeddings to logits, over caches of its own kind: each has a `length` to be lowered."""

    def sequence(self, ids: Ids, table: Array, tokens: Any | None) -> Any:
        """A prompt as embeddings; has a `shape` [1, L, D]."""
        ...

    def new_cache(self, tokens: int, *, reuse: Any = None) -> Any: ...

    def prefill(self, cache: Any, sequence: Any, *, on_chunk: Callable[[int], None] = ...) -> Array: ...

    def decode_one(self, cache: Any, embedding: Array) -> Array: ...


class Machine(Protocol):
    """A bundle with what runs it. `name` is for people."""

    bundle: Bundle

    @property
    def name(self) -> str: ...

    @property
    def encoder(self) -> Encoder: ...

    def decoder(self) -> LanguageDecoder: ...

    def stages(self) -> Stages:
        """Its frame graphs one at a time, for a profile."""
        ...

    def features_share(self, memory_bytes: int, *, cache_tokens: int) -> int: ...

    def close(self) -> None: ...


class OnCpu:
    """By ONNX Runtime. Graphs are loaded when they are first needed."""

    name = "CPU, ONNX Runtime"

    def __init__(self, bundle: Bundle, *, timings: Timings, threads: int | None = None) -> None:
        self.bundle = bundle
        self._graphs = Graphs(bundle, timings=timings, threads=threads)
        self.encoder = FrameEncoder(self._graphs, timings)
        self._decoder: Decoder | None = None

    def decoder(self) -> Decoder:
        if self._decoder is None:
            language = self.bundle.manifest.model.language
            self._decoder = Decoder(self._graphs.load("llm"), self._graphs.contract("llm"), language)
        return self._decoder

    def stages(self) -> Stages:
        from llamavid.runtime.profile.stages import CpuStages

        return CpuStages(self._graphs)

    def features_share(self, memory_bytes: int, *, cache_tokens: int) -> int:
        return features_share(memory_bytes, self._graphs, cache_tokens=cache_tokens)

    def close(self) -> None:
        self._graphs.close()
        self._decoder = None


def open_machine(
    bundle: Bundle,
    *,
    on: str | None,
    allow_cpu: bool = False,
    timings: Timings,
    threads: int | None = None,
    memory_bytes: int | None = None,
    stages: Sequence[str] = GRAPHS,
) -> Machine:
    """What was asked for, or an error: the CPU never steps in unasked.

    Args:
        on: "cpu", "this" or a target's name. None is "this" for a bundle with engines, otherwise "cpu".
        allow_cpu: where the engines cannot be used, warn and take the CPU.
        stages: what will run on it. Engines for some of them alone cannot be used.

    Raises:
        UsageError: `on` is no target.
        BundleError, DeviceError, ParityError: the engines cannot be used, with the reason.
    """
    wanted = on or (THIS if engine_sets(bundle) else CPU)
    if wanted == CPU:
        return OnCpu(bundle, timings=timings, threads=threads)
    try:
        return _on_gpu(bundle, wanted, stages, timings, memory_bytes)
    except (BundleError, DeviceError, ParityError) as error:
        if allow_cpu:
            warnings.warn(f"The CPU answers, not an engine: {error}", stacklevel=2)
            return OnCpu(bundle, timings=timings, threads=threads)
        told = "--on cpu" in error.next_step
        more = "Or pass --allow-cpu." if told else "Or pass --on cpu, or --allow-cpu."
        said = error.next_step if "--allow-cpu" in error.next_step else f"{error.next_step} {more}".strip()
        raise type(error)(error.given, expected=error.expected, next_step=said) from error


def _on_gpu(
    bundle: Bundle, wanted: str, stages: Sequence[str], timings: Timings, memory_bytes: int | None
) -> Machine:
    from llamavid.runtime.tensorrt.choosing import usable_engines
    from llamavid.runtime.tensorrt.machine import OnGpu

    engines, device = usable_engines(bundle, wanted, stages)
    return OnGpu(bundle, engines, device, timings=timings, memory_bytes=memory_bytes)
