"""The language model as it answers: prefill in chunks, then one token after another.

Owns the key-value cache: one buffer a tensor, shared with the graph, so that no
step copies it. Takes embeddings and gives logits; knows nothing of words.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llamavid.config import LanguageConfig
from llamavid.contract import GraphContract
from llamavid.errors import PromptError
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.memory import require_memory

Array = npt.NDArray[np.floating]

PREFILL_CHUNK = 512  # tokens a run: bounds the scores, heads x chunk x length, however long the video
_CACHE_STEP = 256  # tokens; buffers are allocated in multiples, so that small growth reuses them


class Decoder:
    """One sequence at a time. `length` tokens of it are in the cache."""

    def __init__(self, executor: OnnxExecutor, contract: GraphContract, language: LanguageConfig) -> None:
        self._executor = executor
        self._past = [spec for spec in contract.inputs if spec.name.startswith("past.")]
        self._limit = language.context_length
        self._capacity = 0
        self.length = 0

    def reserve(self, tokens: int) -> None:
        """Empties the cache and makes room for a sequence of `tokens` in all.

        Raises:
            PromptError: the model's context is shorter.
        """
        if tokens > self._limit:
            raise PromptError(
                f"the prompt and its answer need {tokens} tokens",
                expected=f"at most {self._limit}, the model's context",
                next_step="Ask about a shorter video, or lower --fps or --max-new-tokens.",
            )
        self.length = 0
        capacity = min(self._limit, -(-tokens // _CACHE_STEP) * _CACHE_STEP)
        if capacity == self._capacity:
            return
        shape = [capacity if dim == "cache" else int(dim) for dim in self._past[0].dims]
        dtype = self._past[0].dtype.numpy
        needed = len(self._past) * int(np.prod(shape)) * dtype.itemsize
        require_memory(needed, f"a cache of {capacity} tokens", "Lower --fps, or ask about a shorter video.")
        for spec in self._past:
            buffer = np.zeros(shape, dtype)  # pages come as they are used
            self._executor.share(spec.name, spec.name.replace("past.", "present."), buffer)
        self._capacity = capacity

    def prefill(self, sequence: Array, *, on_chunk: Callable[[int], None] = lambda _: None) -> Array:
        """Embeddings [1, T, D] -> logits [V] after the last; `on_chunk(tokens so far)` after each chunk."""
        logits = None
        for start in range(0, sequence.shape[1], PREFILL_CHUNK):
            logits = self._step(sequence[:, start : start + PREFILL_CHUNK])
            on_chunk(self.length)
        assert logits is not None, "an empty sequence"
        return logits

    def decode_one(self, embedding: Array) -> Array:
        """Reads one more embedding [D] -> logits [V]."""
        return self._step(embedding[None, None])

    def _step(self, rows: Array) -> Array:
        total = self.length + rows.shape[1]
        assert total <= self._capacity, "reserve() comes first"
        inputs = {"inputs_embeds": rows, "total_length": np.asarray([total], np.int32)}
        logits = self._executor.run(inputs)["logits"]
        self.length = total
        return logits[0]
