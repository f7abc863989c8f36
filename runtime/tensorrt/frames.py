"""The three frame engines: the counterpart of `llamavid.runtime.encoder` on the GPU.

Pixels go in; features and tokens stay there. Three streams: while vision works on one batch, the pixels of
the next go up, and content, context and copies follow on the third. Who waits for whom is said at each
hand-over; Note [Late work] in `llamavid.runtime.tensorrt.cuda`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.bundle import FRAME_GRAPHS
from llamavid.config import ModelConfig
from llamavid.contract import ATTENTION, RELEVANCE
from llamavid.elements import as_elements
from llamavid.errors import BundleError
from llamavid.runtime.evidence import EvidenceCollector
from llamavid.runtime.features.memory import FeatureMemory, pixel_digests
from llamavid.runtime.features.watched import ArrayFeatures, FrameFeatures
from llamavid.runtime.tensorrt.buffers import Buffer, DeviceBuffer, PinnedBuffer
from llamavid.runtime.tensorrt.cuda import Cuda, Event, Stream
from llamavid.runtime.tensorrt.engine import Context, Engine, Shape, bounds, size_of
from llamavid.runtime.tensorrt.features import Block, DeviceFeatures, FrameShapes
from llamavid.runtime.tensorrt.sequence import DeviceTokens
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.frames import FrameTime

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

FRAMES = "frames"  # the profile
MOST_FRAMES = 16  # a run: 12 MB of features at 257 x 1408 in float16
RESIDENT_BYTES = 4 << 30  # of features, hour and a half at a frame a second; and a quarter of what is free


class EngineEncoder:
    """Runs `vision`, `content` and `context`. One thread at a time. `encoded` counts vision's frames."""

    def __init__(
        self,
        cuda: Cuda,
        load: Callable[[str], Engine],
        contracts: ModelConfig,
        timings: Timings,
        *,
        spill: Callable[[], FeatureMemory],
    ) -> None:
        """Loads no engine before it is needed.

        Args:
            load: the engine of a stage, deserialized once.
            spill: a memory on the host, for what the GPU does not hold.
        """
        self._cuda, self._load, self._config, self._timings = cuda, load, contracts, timings
        self._spill = spill
        self._contexts: dict[str, Context] = {}
        self._buffers: dict[str, DeviceBuffer] = {}
        self._staging: dict[str, PinnedBuffer] = {}
        self._upload, self._vision, self._tokens = Stream(cuda), Stream(cuda), Stream(cuda)
        self._pictures = (Event(cuda), Event(cuda)), (Event(cuda), Event(cuda))  # uploaded, seen; two in turn
        self._turn = 0
        self._new: DeviceFeatures | None = None  # what `see` gave
        self.encoded = 0

    @property
    def batch(self) -> int:
        """Frames a run of every engine may have, and a block of features has."""
        return min(
            MOST_FRAMES, *(bounds(self._context(s).profile, self._first(s))[1][0] for s in FRAME_GRAPHS)
        )

    # What a session calls.

    def memory(self, *, frames: int, memory_bytes: int | None) -> DeviceFeatures:
        """For a video's features, by Note [What stays on the GPU]."""
        return self._features(min(RESIDENT_BYTES, self._cuda.free_bytes() // 4))

    def remember(self, memory: DeviceFeatures, pixels: Array, frames: Sequence[FrameTime]) -> None:
        """Encodes frames into `memory`, each picture once: equal pixels have equal features.

        Raises:
            DeviceError: GPU, memory and disk are full, or the GPU fails.
            BundleError: a feature does not fit float16, where it has to leave the GPU.
        """
        digests = pixel_digests(pixels)
        waiting: list[int] = []
        for at, digest in enumerate(digests):
            if memory.holds(digest) or digest in (digests[i] for i in waiting):
                self._encode_into(memory, pixels, waiting, digests)  # before it: order is kept
                waiting = []
                memory.append_equal(digest)
            else:
                waiting.append(at)
        self._encode_into(memory, pixels, waiting, digests)

    def see(self, pixels: Array, frames: Sequence[FrameTime]) -> DeviceFeatures:
        """Encodes a stream's new frames. Good until the next call."""
        if self._new is None:
            self._new = self._features(RESIDENT_BYTES)
        self._new.clear()
        self._encode_into(self._new, pixels, list(range(len(pixels))), [None] * len(pixels))
        return self._new

    def adopt(self, features: Array, *, batch: int) -> FrameFeatures:
        """Features [T, R, C] of the host's, which go up for each question."""
        return ArrayFeatures(features, np.empty((len(features), 0, 1), features.dtype))

    def prepare_context(self) -> None:
        """Loads what `tokens` needs, so that its time is its own."""
        self._context("context")

    def tokens(
        self,
        held: FrameFeatures,
        question_ids: Ids,
        *,
        batch: int,
        collector: EvidenceCollector | None = None,
    ) -> DeviceTokens:
        """The frames in the light of a question [1, L]; `collector` gets what it looked at.

        Raises:
            DeviceError: the question is longer than the engine takes, memory does not suffice, the GPU fails.
        """
        ids = self._pinned("question_ids", question_ids.nbytes)
        ids.view(np.int64, question_ids.shape)[...] = question_ids
        question = self._buffer("question_ids", ids.size)
        self._tokens.copy(question.address, ids.address, question_ids.nbytes)
        rows: list[tuple[DeviceBuffer, int]] = []
        evidence: list[dict[str, Array]] = []
        for features, shape, content in self._parts(held):
            buffer = self._token_rows(features, shape, content, (question.address, question_ids.shape))
            rows += [(buffer, at) for at in range(shape[0])]
            if collector is not None:
                evidence.append(self._evidence(shape[0]))
        self._tokens.synchronize()  # the staging memory of the question is free again
        order = held.order if isinstance(held, DeviceFeatures) else range(len(rows))
        if collector is not None:
            collector.add(
                {name: np.concatenate([part[name] for part in evidence])[list(order)] for name in evidence[0]}
            )
        config = self._config
        frames = tuple(rows[place] for place in order)
        dtype = self._load("content").contract.outputs[0].dtype
        return DeviceTokens(frames, config.tokens_per_frame, config.language.hidden, dtype, self._tokens)

    def close(self) -> None:
        for stream in (self._upload, self._vision, self._tokens):
            stream.close()
        for event in (event for pair in self._pictures for event in pair):
            event.close()
        if self._new is not None:
            self._new.close()
        for context in self._contexts.values():
            context.close()
        buffers: list[Buffer] = [*self._buffers.values(), *self._staging.values()]
        for buffer in buffers:
            buffer.close()

    # Pixels to features and content.

    def _encode_into(
        self, memory: DeviceFeatures, pixels: Array, rows: list[int], digests: Sequence[bytes | None]
    ) -> None:
        for start in range(0, len(rows), self.batch):
            batch = rows[start : start + self.batch]
            with self._timings.stage("vision"):
                features, content = self._encode(pixels[batch])
            memory.append(features, content, [digests[at] for at in batch])

    def _encode(self, pixels: Array) -> tuple[int, int]:
        """Where features and content will be, for what is put on the stream `_tokens` until the next call."""
        shapes, count = self._shapes(), len(pixels)
        spec = self._first("vision")
        name, (uploaded, seen) = f"pixels {self._turn}", self._pictures[self._turn]
        self._turn = 1 - self._turn
        size = self.batch * size_of(spec, pixels.shape[1:])
        staging, target = self._pinned(name, size), self._buffer(name, size)
        features = self._buffer("features", self.batch * shapes.features_bytes)
        content = self._buffer("content", self.batch * shapes.content_bytes)

        uploaded.synchronize()  # the batch before the last has left the staging memory
        staging.view(spec.dtype.numpy, pixels.shape)[...] = as_elements(pixels, spec.dtype)
        self._upload.wait_for(seen)  # and its place on the GPU has been read
        self._upload.copy(target.address, staging.address, size_of(spec, pixels.shape))
        uploaded.record(self._upload)

        self._vision.wait_for(uploaded)
        self._vision.wait_for(self._tokens)  # the last batch's features have been taken
        self._run(
            "vision",
            self._vision,
            {"pixels": (target.address, pixels.shape)},
            {"features": features.address},
        )
        seen.record(self._vision)

        self._tokens.wait_for(self._vision)
        self._run_content(features.address, (count, *shapes.features), content.address)
        self.encoded += count
        return features.address, content.address

    def _run_content(self, features: int, shape: Shape, content: int) -> None:
        self._run("content", self._tokens, {"features": (features, shape)}, {"content_tokens": content})

    # Features and a question to tokens.

    def _parts(self, held: FrameFeatures) -> Iterator[tuple[int, Shape, int]]:
        """Batches of features on the GPU: their address and shape, and their content tokens' address."""
        shapes = self._shapes()
        for part in held.parts() if isinstance(held, DeviceFeatures) else held.batches(self.batch):
            if isinstance(part, Block):
                yield part.features.address, (part.count, *shapes.features), part.content.address
                continue
            features, content = part
            on_gpu = self._brought("stored features", features)
            if content.shape[1]:
                yield on_gpu, features.shape, self._brought("stored content", content)
            else:
                made = self._buffer("content", self.batch * shapes.content_bytes)
                self._run_content(on_gpu, features.shape, made.address)
                yield on_gpu, features.shape, made.address

    def _brought(self, name: str, values: Array) -> int:
        """The address of what goes up from the host."""
        elements = as_elements(values, self._shapes().dtype)
        self._tokens.synchronize()  # the batch before has left the staging memory
        staging, target = self._pinned(name, elements.nbytes), self._buffer(name, elements.nbytes)
        staging.view(elements.dtype, elements.shape)[...] = elements
        self._tokens.copy(target.address, staging.address, elements.nbytes)
        return target.address

    def _token_rows(
        self, features: int, shape: Shape, content: int, question: tuple[int, Shape]
    ) -> DeviceBuffer:
        """Context and content tokens of a batch, frame by frame: [n, 1 + k, D]."""
        contract = self._load("context").contract
        count, shapes = shape[0], self._shapes()
        row = shapes.content[1] * shapes.dtype.numpy.itemsize
        frame = (1 + shapes.content[0]) * row
        outputs = {
            spec.name: self._buffer(spec.name, self.batch * size_of(spec, spec_shape(spec.shape)))
            for spec in contract.outputs
        }
        addresses = {name: buffer.address for name, buffer in outputs.items()}
        self._run(
            "context", self._tokens, {"features": (features, shape), "question_ids": question}, addresses
        )
        rows = DeviceBuffer(self._cuda, count * frame, f"the tokens of {count} frames")
        for place, source, width in (
            (0, addresses["context_tokens"], row),
            (row, content, shapes.content_bytes),
        ):
            self._tokens.copy_rows(
                rows.address + place,
                source,
                width=width,
                rows=count,
                target_pitch=frame,
                source_pitch=width,
            )
        return rows

    def _evidence(self, count: int) -> dict[str, Array]:
        """What the last run of context looked at, brought to the host."""
        found = {}
        contract = self._load("context").contract
        for spec in (contract.spec(name) for name in (ATTENTION, RELEVANCE)):
            shape = (count, *spec_shape(spec.shape))
            staging = self._pinned(spec.name, self.batch * size_of(spec, shape[1:]))
            self._tokens.copy(staging.address, self._buffers[spec.name].address, size_of(spec, shape))
            self._tokens.synchronize()
            found[spec.name] = staging.view(spec.dtype.numpy, shape).copy()
        return found

    # Engines and memory.

    def _run(
        self,
        stage: str,
        stream: Stream,
        inputs: dict[str, tuple[int, Shape]],
        outputs: dict[str, int],
    ) -> None:
        context = self._context(stage)
        context.set_shapes({name: shape for name, (_, shape) in inputs.items()})
        context.set_addresses({**{name: address for name, (address, _) in inputs.items()}, **outputs})
        context.enqueue(stream)

    def _context(self, stage: str) -> Context:
        if stage not in self._contexts:
            self._contexts[stage] = self._load(stage).context(FRAMES)
        return self._contexts[stage]

    def _first(self, stage: str) -> Any:
        return self._load(stage).contract.inputs[0]

    def _shapes(self) -> FrameShapes:
        vision = self._load("vision").contract.outputs[0]
        content = self._load("content").contract.outputs[0]
        types = {vision.dtype, content.dtype, self._first("content").dtype, self._first("context").dtype}
        if len(types) > 1:
            names = ", ".join(sorted(dtype.value for dtype in types))
            raise BundleError(f"the frame engines differ in type: {names}", expected="one type between them")
        _, rows, width = vision.shape
        _, tokens, hidden = content.shape
        return FrameShapes((int(rows), int(width)), (int(tokens), int(hidden)), vision.dtype)

    def _features(self, resident_bytes: int) -> DeviceFeatures:
        return DeviceFeatures(
            self._cuda,
            self._tokens,
            self._shapes(),
            block_frames=self.batch,
            resident_bytes=resident_bytes,
            spill=self._spill,
        )

    def _buffer(self, name: str, size: int) -> DeviceBuffer:
        """Of that name, grown where it is too small."""
        if name not in self._buffers or self._buffers[name].size < size:
            held = self._buffers.pop(name, None)
            if held is not None:
                held.close()
            self._buffers[name] = DeviceBuffer(self._cuda, size, f"{name} of the frame engines")
        return self._buffers[name]

    def _pinned(self, name: str, size: int) -> PinnedBuffer:
        if name not in self._staging or self._staging[name].size < size:
            held = self._staging.pop(name, None)
            if held is not None:
                held.close()
            self._staging[name] = PinnedBuffer(self._cuda, size)
        return self._staging[name]


def spec_shape(shape: tuple[int | str, ...]) -> Shape:
    """Of one frame: what follows the number of frames."""
    return tuple(int(dim) for dim in shape[1:])
