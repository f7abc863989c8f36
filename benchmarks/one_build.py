"""One graph built alone: seconds, size and the peak memory of this process, which does nothing else.

Imports no PyTorch, whose memory would be counted too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from llamavid.contract import GraphContract
from llamavid.engines import Profile
from llamavid.errors import LlamaVidError
from llamavid.export.compilation import Settings, compiled
from llamavid.export.tensorrt_library import open_library
from llamavid.targets import Capability, Library


@dataclass(frozen=True)
class Build:
    """One graph, built for several devices at once."""

    model: str
    precision: str
    graph: str
    capabilities: tuple[Capability, ...]
    weights_bytes: int
    engine_bytes: int
    seconds: float
    peak_bytes: int  # of resident memory
    refused: str = ""  # in our words, where it does not build


def built(
    model: str,
    precision: str,
    graph: str,
    file: Path,
    contract: GraphContract,
    profiles: tuple[Profile, ...],
    fixed: dict[str, int],
    capabilities: tuple[Capability, ...],
) -> Build:
    """Builds the graph in `file` for all of `capabilities` in one call."""
    own = Path(f"{file}.data")  # the language model's lowerings share a file
    weights = (own if own.exists() else file.with_name("llm.onnx.data")).stat().st_size
    trt, start = open_library(Library.TENSORRT_RTX), time.perf_counter()
    size, refused = 0, ""
    try:
        size = compiled(trt, graph, file, contract, profiles, Settings(capabilities), fixed=fixed).data.nbytes
    except LlamaVidError as error:
        refused = str(error)
    seconds = time.perf_counter() - start
    return Build(model, precision, graph, capabilities, weights, size, seconds, _peak_bytes(), refused)


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
