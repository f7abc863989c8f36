"""The runtime as export and verify see it: what a bundle's graphs compute, through the code that answers.

Export may not import the runtime, so the command line hands it this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.bundle import GraphEntry
from llamavid.config import LanguageConfig
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.executors import OnnxExecutor


def run_graph(
    folder: Path, entry: GraphEntry, inputs: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
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
    decoder = Decoder(executor, entry.contract, language)
    cache = decoder.new_cache(sum(chunk.shape[1] for chunk in chunks))
    return np.stack([decoder.prefill(cache, chunk) for chunk in chunks])
