"""The language model's engine as it answers: the counterpart of `llamavid.runtime.decoder` on the GPU.

Takes embeddings and gives logits; knows nothing of words. Prefill goes in chunks through one context;
decoding goes through a context and a captured CUDA graph of each cache's own. Of a step the host sees one
embedding go in and one row of logits come out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.config import LanguageConfig
from llamavid.contract import Lowering
from llamavid.elements import as_elements
from llamavid.errors import DeviceError
from llamavid.runtime.decoder import PREFILL_CHUNK, cache_capacity
from llamavid.runtime.tensorrt.buffers import Buffer, DeviceBuffer, PinnedBuffer
from llamavid.runtime.tensorrt.cache import CacheLayout, DeviceCache
from llamavid.runtime.tensorrt.cuda import Cuda, Stream
from llamavid.runtime.tensorrt.engine import Context, Engine, bounds
from llamavid.runtime.tensorrt.sequence import DeviceSequence, DeviceTokens, device_sequence

Array = npt.NDArray[Any]

PREFILL, DECODE = "prefill", "decode"


class EngineDecoder:
    """Runs one engine over one cache or another. One thread at a time."""

    def __init__(self, cuda: Cuda, engine: Engine, language: LanguageConfig, lowering: Lowering) -> None:
        """Raises `DeviceError` where the GPU has not enough memory."""
        assert lowering is not Lowering.ONNX_RUNTIME, "engines are of the other lowerings"
        self._cuda, self._engine, self._language = cuda, engine, language
        self._gives_new_rows = lowering is Lowering.PRIMITIVE
        self._layout = CacheLayout.of(engine.contract)
        self._embeds = engine.contract.spec("inputs_embeds")
        past = engine.contract.spec(self._layout.names[0])
        self._cache_dims = tuple(0 if dim == "cache" else int(dim) for dim in past.dims)
        # TensorRT-RTX's engines have one profile for both: it chooses kernels by the shape that comes.
        self._decode = DECODE if DECODE in engine.profiles else PREFILL
        self._shortest, longest = (shape[2] for shape in bounds(engine.profile(self._decode), past))
        self._limit = min(language.context_length, longest)
        self._chunk = min(PREFILL_CHUNK, bounds(engine.profile(PREFILL), self._embeds)[1][1])
        row = language.hidden * self._embeds.dtype.numpy.itemsize
        self._stream = Stream(cuda)
        self._contexts: dict[str, Context] = {}
        self._caches: weakref.WeakSet[DeviceCache] = weakref.WeakSet()
        self._device = {
            "inputs_embeds": DeviceBuffer(cuda, self._chunk * row, "the language engine's input"),
            "total_length": DeviceBuffer(cuda, 4, "the language engine's input"),
            "logits": DeviceBuffer(cuda, 4 * language.vocab_size, "logits"),
        }
        self._new = DeviceBuffer(
            cuda, self._layout.block(self._chunk) if self._gives_new_rows else 0, "a chunk's keys and values"
        )
        self._rows_in = PinnedBuffer(cuda, self._chunk * row)
        self._total = PinnedBuffer(cuda, 4)
        self._logits_out = PinnedBuffer(cuda, 4 * language.vocab_size)
        self._row = row

    def sequence(
        self, ids: npt.NDArray[np.int64], table: npt.NDArray[np.floating], tokens: DeviceTokens | None
    ) -> DeviceSequence:
        """A prompt's embeddings; see `device_sequence`."""
        return device_sequence(self._cuda, self._stream, ids, table, tokens, dtype=self._embeds.dtype)

    def new_cache(self, tokens: int, *, reuse: DeviceCache | None = None) -> DeviceCache:
        """An empty cache for a sequence of `tokens` in all; `reuse` itself, emptied, if that is its size.

        A `reuse` of another size is closed: the GPU need not hold both.

        Raises:
            PromptError: the model's context, or what the engine was built for, is shorter.
            DeviceError: there is not enough memory.
        """
        capacity = max(self._shortest, cache_capacity(tokens, self._limit))
        if reuse is not None and not reuse.is_closed:
            if reuse.capacity == capacity:
                reuse.clear(self._stream)
                return reuse
            reuse.close()
        cache = DeviceCache(self._cuda, self._stream, self._layout, capacity)
        self._caches.add(cache)
        return cache

    def prefill(
        self,
        cache: DeviceCache,
        sequence: DeviceSequence | Array,
        *,
        on_chunk: Callable[[int], None] = lambda _: None,
    ) -> npt.NDArray[np.float32]:
        """Reads embeddings [1, L, D] -> logits [V] after the last.

        Raises:
            DeviceError: the GPU fails, or the engine gives what is no number.
        """
        for start in range(0, sequence.shape[1], self._chunk):
            tokens = min(self._chunk, sequence.shape[1] - start)
            self._take(sequence, start, tokens)
            self._set_total(cache, tokens)
            self._stream.copy(self._device["total_length"].address, self._total.address, 4)
            context = self._context_for(tokens)
            self._point(context, cache, tokens)
            context.enqueue(self._stream)
            self._keep_rows(cache, tokens)
            self._stream.copy(*self._logits_copy)
            self._stream.synchronize()  # also what the next chunk overwrites is free then
            cache.length += tokens
            on_chunk(cache.length)
        return self._logits()

    def decode_one(self, cache: DeviceCache, embedding: Array) -> npt.NDArray[np.float32]:
        """Reads one more embedding [D] -> logits [V]. Raises as `prefill`."""
        rows = self._rows_in.view(self._embeds.dtype.numpy, embedding.shape)
        rows[...] = as_elements(embedding, self._embeds.dtype)
        self._set_total(cache, 1)
        if cache.step is None:
            # TensorRT prepares for new shapes in the first run, which therefore is not captured.
            cache.step = self._engine.context(self._decode)
            self._point(cache.step, cache, 1)
            self._step(cache.step)
        else:
            step = cache.step
            if cache.graph is None and step.can_be_captured(self._stream):
                cache.graph = self._stream.captured(lambda: self._step(step))
            if cache.graph is None:
                self._step(step)
            else:
                self._stream.launch(cache.graph)
        self._keep_rows(cache, 1)
        self._stream.synchronize()
        cache.length += 1
        return self._logits()

    def close(self) -> None:
        """Frees everything, the caches too. The engine stays with its owner."""
        self._stream.close()
        for cache in list(self._caches):
            cache.close()
        for context in self._contexts.values():
            context.close()
        buffers: list[Buffer] = [
            *self._device.values(),
            self._new,
            self._rows_in,
            self._total,
            self._logits_out,
        ]
        for buffer in buffers:
            buffer.close()

    # What goes on the stream.

    def _step(self, context: Context) -> None:
        """One token: its embedding and the length up, the engine, its logits down."""
        self._stream.copy(self._device["inputs_embeds"].address, self._rows_in.address, self._row)
        self._stream.copy(self._device["total_length"].address, self._total.address, 4)
        context.enqueue(self._stream)
        self._stream.copy(*self._logits_copy)

    def _take(self, sequence: DeviceSequence | Array, start: int, tokens: int) -> None:
        """Rows of a sequence to where the engine reads them."""
        source = self._rows_in.address
        if isinstance(sequence, DeviceSequence):
            source = sequence.buffer.address + start * self._row
        else:
            rows = as_elements(sequence[0, start : start + tokens], self._embeds.dtype)
            self._rows_in.view(rows.dtype, rows.shape)[...] = rows
        self._stream.copy(self._device["inputs_embeds"].address, source, tokens * self._row)

    def _set_total(self, cache: DeviceCache, tokens: int) -> None:
        """On the host, which the stream has left by now."""
        total = cache.length + tokens
        assert total <= cache.capacity, f"{total} tokens in a cache for {cache.capacity}"
        self._total.view(np.int32, (1,))[0] = total

    def _keep_rows(self, cache: DeviceCache, tokens: int) -> None:
        if self._gives_new_rows:
            self._layout.store(self._stream, cache, self._new.address, tokens)

    def _point(self, context: Context, cache: DeviceCache, tokens: int) -> None:
        """Shapes and addresses for `tokens` new tokens over a cache."""
        batch, heads, _, width = self._cache_dims
        past = (batch, heads, cache.capacity, width)
        context.set_shapes(
            {
                "inputs_embeds": (1, tokens, self._language.hidden),
                "total_length": (1,),
                **dict.fromkeys(self._layout.names, past),
            }
        )
        given = (
            self._layout.addresses(self._new.address, tokens, prefix="new.")
            if self._gives_new_rows
            else self._layout.addresses(cache.buffer.address, cache.capacity, prefix="present.")
        )
        context.set_addresses(
            {
                **{name: buffer.address for name, buffer in self._device.items()},
                **self._layout.addresses(cache.buffer.address, cache.capacity, prefix="past."),
                **given,
            }
        )

    def _context_for(self, tokens: int) -> Context:
        """Of prefill; of decode for the one token that a prefill profile may begin above."""
        fewest = bounds(self._engine.profile(PREFILL), self._embeds)[0][1]
        profile = self._decode if tokens == 1 and fewest > 1 else PREFILL
        if profile not in self._contexts:
            self._contexts[profile] = self._engine.context(profile)
        return self._contexts[profile]

    @property
    def _logits_copy(self) -> tuple[int, int, int]:
        return self._logits_out.address, self._device["logits"].address, self._logits_out.size

    def _logits(self) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self._logits_out.view(
            np.float32, (self._language.vocab_size,)
        ).copy()
        if not np.isfinite(logits).all():
            raise DeviceError(
                "the language engine gives what is no number",
                next_step="Run `llamavid verify` on this bundle, or pass --on cpu.",
            )
        return logits
