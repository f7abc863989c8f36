"""The runtime as export and verify see it: what a bundle's graphs compute, through the code that answers.

Export may not import the runtime, so the command line hands it this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.bundle import GRAPHS, Bundle, GraphEntry
from llamavid.config import LanguageConfig
from llamavid.parity import TOLERANCES, with_cache
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.encoder import CONTEXT_BATCH
from llamavid.runtime.executors import OnnxExecutor, open_session
from llamavid.runtime.graphs import Graphs, runs_on_a_cpu
from llamavid.runtime.session import VISION_BATCH
from llamavid.runtime.timing import Timings
from llamavid.runtime.verify import LANGUAGE_STAGE, Stage, Step, Subject, read_steps

Array = npt.NDArray[Any]

ONNX_RUNTIME = "ONNX Runtime"
_SIZES = {
    "vision": (1, VISION_BATCH),
    "content": (1, 3, CONTEXT_BATCH),
    "context": (1, 3, CONTEXT_BATCH),
    "llm": (),
}


def run_graph(folder: Path, entry: GraphEntry, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a frame graph, by name."""
    return OnnxExecutor(folder / entry.file, entry.contract).run(inputs)


def run_language(
    folder: Path,
    entry: GraphEntry,
    language: LanguageConfig,
    chunks: Sequence[npt.NDArray[np.floating]],
    *,
    exact_int4: bool = False,
) -> npt.NDArray[np.float32]:
    """Logits [len(chunks), V] after each chunk [1, T, D] of one sequence, through one cache."""
    executor = OnnxExecutor(folder / entry.file, entry.contract, exact_int4=exact_int4)
    *starts, total = np.cumsum([0, *(chunk.shape[1] for chunk in chunks)])
    steps = [Step(int(start), chunk) for start, chunk in zip(starts, chunks, strict=True)]
    return read_steps(Decoder(executor, entry.contract, language), steps, int(total))


def onnx_subject(bundle: Bundle) -> Subject:
    """The bundle's ONNX graphs on the CPU, one in memory at a time, at a session's batch sizes."""
    loaded: dict[str, OnnxExecutor] = {}

    def load(stage: str) -> OnnxExecutor:
        if stage not in loaded:
            loaded.clear()
            loaded[stage] = Graphs(bundle, timings=Timings()).load(stage)
        return loaded[stage]

    def run_frames(stage: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return load(stage).run(inputs)

    def read(steps: Sequence[Step], capacity: int) -> npt.NDArray[np.float32]:
        contract, language = bundle.manifest.graphs[LANGUAGE_STAGE].contract, bundle.manifest.model.language
        return read_steps(Decoder(load(LANGUAGE_STAGE), contract, language), steps, capacity)

    stages = {name: _stage(name, bundle.manifest.graphs[name]) for name in GRAPHS}
    can = {name: stage for name, stage in stages.items() if runs_on_a_cpu(stage.graph, stage.precision)}
    return Subject(ONNX_RUNTIME, can, run_frames, read)


def _stage(name: str, entry: GraphEntry) -> Stage:
    rule = f"{entry.precision} run" if name == LANGUAGE_STAGE else f"{entry.precision} frames"
    tolerance = TOLERANCES.get(rule) or TOLERANCES[entry.precision]
    if name == LANGUAGE_STAGE:
        tolerance = with_cache(tolerance, entry.contract)
    return Stage(name, entry.precision, entry.contract, tolerance, _SIZES[name])


def run_file(
    file: Path, inputs: Mapping[str, npt.NDArray[Any]], *, exact_int4: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """Any ONNX file, its weights beside it: outputs by name. Raises `BundleError` where it is none."""
    session = open_session(file, exact_int4=exact_int4)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
