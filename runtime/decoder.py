"""The language model as it answers: prefill in chunks, then one token after another.

Takes embeddings and gives logits; knows nothing of words. What it has read lies in a `KeyValueCache`, of
which there may be several: each is shared with the graph while it is in use, so that no step copies it.

Note [Cache]
    Buffers begin as zeros: a graph for TensorRT multiplies what lies behind the cache's end by a weight of
    zero, and zero times NaN is NaN. A graph that gives `present.*` writes into the buffer itself; one that
    gives `new.*` reads it alone, and the new rows are copied to their place after the run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llamavid.config import LanguageConfig
from llamavid.contract import GraphContract
from llamavid.errors import PromptError
from llamavid.runtime.assembly import FrameTokens, assemble
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.memory import require_memory

Array = npt.NDArray[np.floating]

PREFILL_CHUNK = 512  # tokens a run: bounds the scores, heads x chunk x length, however long the video
_CACHE_STEP = 256  # tokens; buffers are allocated in multiples, so that small growth reuses them


class KeyValueCache:
    """Keys and values of one sequence: `length` tokens of at most `capacity`.

    To roll back, lower `length`: what comes next is written over the rest.
    """

    def __init__(self, buffers: dict[str, Array], capacity: int) -> None:
        self.buffers, self.capacity, self.length = buffers, capacity, 0  # buffers: [1, kv_heads, capacity, d]


class Decoder:
    """Runs one graph over one cache or another. One thread at a time."""

    def __init__(self, executor: OnnxExecutor, contract: GraphContract, language: LanguageConfig) -> None:
        self._executor = executor
        self._past = [spec for spec in contract.inputs if spec.name.startswith("past.")]
        outputs = {spec.name for spec in contract.outputs}
        pairs = {spec.name: _renamed(spec.name, "new") for spec in self._past}
        self._new = {past: new for past, new in pairs.items() if new in outputs}  # Note [Cache]
        self._dtype = contract.spec("inputs_embeds").dtype.numpy
        self._limit = language.context_length
        self._attached: KeyValueCache | None = None

    def sequence(
        self, ids: npt.NDArray[np.int64], table: Array, tokens: FrameTokens | None
    ) -> npt.NDArray[np.floating]:
        """A prompt as embeddings [1, L, D], slots filled with `tokens`; see `assemble`."""
        if tokens is None:
            none = np.empty((0, 1, table.shape[1]), self._dtype)
            tokens = FrameTokens(none, none)
        return assemble(ids, table, tokens, dtype=self._dtype)

    def new_cache(self, tokens: int, *, reuse: KeyValueCache | None = None) -> KeyValueCache:
        """An empty cache for a sequence of `tokens` in all; `reuse` itself, emptied, if that is its size.

        Raises:
            PromptError: the model's context is shorter.
            DeviceError: there is not enough memory.
        """
        capacity = cache_capacity(tokens, self._limit)
        if reuse is not None and reuse.capacity == capacity:
            reuse.length = 0
            return reuse
        shape = [capacity if dim == "cache" else int(dim) for dim in self._past[0].dims]
        dtype = self._past[0].dtype.numpy
        needed = len(self._past) * int(np.prod(shape)) * dtype.itemsize
        require_memory(needed, f"a cache of {capacity} tokens", "Lower --fps, or ask about a shorter video.")
        # Pages come as they are used.
        return KeyValueCache({spec.name: np.zeros(shape, dtype) for spec in self._past}, capacity)

    def prefill(
        self, cache: KeyValueCache, sequence: Array, *, on_chunk: Callable[[int], None] = lambda _: None
    ) -> Array:
        """Reads embeddings [1, T, D] -> logits [V] after the last.

        on_chunk: called after each chunk with the tokens in the cache.
        """
        logits = None
        for start in range(0, sequence.shape[1], PREFILL_CHUNK):
            logits = self._step(cache, sequence[:, start : start + PREFILL_CHUNK])
            on_chunk(cache.length)
        assert logits is not None, "an empty sequence"
        return logits

    def decode_one(self, cache: KeyValueCache, embedding: Array) -> Array:
        """Reads one more embedding [D] -> logits [V]."""
        return self._step(cache, embedding.astype(self._dtype, copy=False)[None, None])

    def _step(self, cache: KeyValueCache, rows: Array) -> Array:
        total = cache.length + rows.shape[1]
        assert total <= cache.capacity, f"{total} tokens in a cache for {cache.capacity}"
        if self._attached is not cache:
            self._attach(cache)
        inputs = {"inputs_embeds": rows, "total_length": np.asarray([total], np.int32)}
        outputs = self._executor.run(inputs)
        for past, new in self._new.items():
            cache.buffers[past][:, :, cache.length : total] = outputs[new]
        cache.length = total
        return outputs["logits"][0]

    def _attach(self, cache: KeyValueCache) -> None:
        for past, buffer in cache.buffers.items():
            self._executor.share(past, None if past in self._new else _renamed(past, "present"), buffer)
        self._attached = cache


def _renamed(past: str, prefix: str) -> str:
    return past.replace("past.", f"{prefix}.", 1)


def cache_capacity(tokens: int, limit: int) -> int:
    """Of a cache for a sequence of `tokens` in all. Raises `PromptError` where the limit is lower."""
    if tokens > limit:
        raise PromptError(
            f"the prompt and its answer need {tokens} tokens",
            expected=f"at most {limit}, the model's context",
            next_step="Ask about a shorter video or window, or lower --fps or --max-new-tokens.",
        )
    return min(limit, -(-tokens // _CACHE_STEP) * _CACHE_STEP)
