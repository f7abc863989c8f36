"""How much of a process's memory is for features, and whether a video's features fit at all.

Note [Budget]
    `memory_bytes` is what the process may hold, mapped files included. From it go what the process holds
    already, the graphs that are still to load, the language model's caches with the sequences read into them,
    and WORKING_BYTES for one batch on its way through the graphs. The rest is for features; what does not fit
    there lies on disk.
"""

from __future__ import annotations

import shutil

import numpy as np

from llamavid.config import ModelConfig
from llamavid.errors import DeviceError
from llamavid.memory import available_memory
from llamavid.runtime.features.memory import SPILL_BYTES, FeatureMemory
from llamavid.runtime.features.slots import disk_folder, mib
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.memory import resident_memory

FEATURES_BYTES = 1 << 30  # half an hour at a frame a second, 0.72 MB each of EVA ViT-g
WORKING_BYTES = 288 << 20  # activations of a batch, decoded frames, the allocator's slack
PROMPT_TOKENS = 1024  # question and answer, beside the frames


def features_memory(graphs: Graphs, *, frames: int, memory_bytes: int | None) -> FeatureMemory:
    """For a video of about `frames` frames, 0 where it does not say, within Note [Budget].

    Without `memory_bytes` features may take FEATURES_BYTES, and at most half of what is free.

    Raises:
        DeviceError: the budget leaves nothing for features, or memory and disk together do not hold them.
    """
    config, folder = graphs.bundle.manifest.model, disk_folder()
    if memory_bytes is None:
        available = available_memory()
        budget = FEATURES_BYTES if available is None else min(FEATURES_BYTES, available // 2)
    else:
        cache_tokens = frames * config.tokens_per_frame + PROMPT_TOKENS
        budget = features_share(memory_bytes, graphs, cache_tokens=cache_tokens)
    spill = min(SPILL_BYTES, shutil.disk_usage(folder).free)
    needed = frames * _frame_bytes(config)
    if needed > budget + spill:
        raise DeviceError(
            f"the features of {frames} frames take {mib(needed)}",
            expected=f"at most {mib(budget)} in memory and {mib(spill)} in {folder}",
            next_step="Lower --fps, use a shorter video, or set TMPDIR to a folder with more room.",
        )
    return FeatureMemory(budget, spill_bytes=spill, spill_folder=folder)


def features_share(memory_bytes: int, graphs: Graphs, *, cache_tokens: int) -> int:
    """What Note [Budget] leaves for features. Raises `DeviceError` where that is less than a frame's."""
    cache = cache_tokens * _bytes_a_token(graphs)
    fixed = resident_memory() + graphs.bytes_to_load() + cache + WORKING_BYTES
    frame = _frame_bytes(graphs.bundle.manifest.model)
    if fixed + frame > memory_bytes:
        raise DeviceError(
            f"a memory of {mib(memory_bytes)} leaves nothing for features",
            expected=f"at least {mib(fixed + frame)}: graphs, caches and one frame",
            next_step="Allow more, or export with a smaller precision.",
        )
    return memory_bytes - fixed


def features_beside_engines(memory_bytes: int | None) -> int:
    """Of the host's memory for what a GPU does not hold; graphs and caches take nothing of it.

    Raises:
        DeviceError: a budget is given, and leaves nothing.
    """
    if memory_bytes is None:
        available = available_memory()
        return FEATURES_BYTES if available is None else min(FEATURES_BYTES, available // 2)
    fixed = resident_memory() + WORKING_BYTES
    if fixed > memory_bytes:
        raise DeviceError(
            f"a memory of {mib(memory_bytes)} leaves nothing for features",
            expected=f"at least {mib(fixed)}, beside the GPU's",
            next_step="Allow more.",
        )
    return memory_bytes - fixed


def _frame_bytes(config: ModelConfig) -> int:
    """Of features and content tokens in float16, as `FeatureMemory` holds them."""
    vision, content = config.vision, config.tokens_per_frame - 1
    return 2 * ((1 + vision.patches) * vision.width + content * config.language.hidden)


def _bytes_a_token(graphs: Graphs) -> int:
    """Keys and values, and the embedding: among the frame tokens, and in the sequence."""
    past = [spec for spec in graphs.contract("llm").inputs if spec.name.startswith("past.")]
    shapes = [[int(dim) for dim in spec.dims if dim != "cache"] for spec in past]
    cached = sum(
        int(np.prod(shape)) * spec.dtype.numpy.itemsize for shape, spec in zip(shapes, past, strict=True)
    )
    return cached + 2 * 4 * graphs.bundle.manifest.model.language.hidden
