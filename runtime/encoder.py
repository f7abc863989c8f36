"""The three frame graphs: pixels to features and content tokens, and these to a question's frame tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llamavid.runtime.assembly import FrameTokens
from llamavid.runtime.evidence import EvidenceCollector
from llamavid.runtime.features.budget import features_memory
from llamavid.runtime.features.memory import FeatureMemory, half, pixel_digests
from llamavid.runtime.features.watched import ArrayFeatures, FrameFeatures, slices
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.frames import FrameTime

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

CONTEXT_BATCH = 8  # frames a run of the content and context graphs: more take 12 MB each, and help no CPU


class FrameEncoder:
    """Runs `vision`, `content` and `context`. One thread at a time. `encoded` counts vision's frames."""

    batch: int | None = None  # frames a run: the caller chooses

    def __init__(self, graphs: Graphs, timings: Timings) -> None:
        self._graphs, self._timings = graphs, timings
        self._pixels_dtype = graphs.dtype("vision", "pixels")
        self._features_dtype = {name: graphs.dtype(name, "features") for name in ("content", "context")}
        self.encoded = 0

    def encode(self, pixels: Array) -> tuple[Array, Array]:
        """Pixels [n, 3, S, S] -> features [n, 1+N, C], content tokens [n, k, D]."""
        vision = self._graphs.load("vision")
        with self._timings.stage("vision"):
            features = vision.run({"pixels": pixels.astype(self._pixels_dtype, copy=False)})["features"]
        self.encoded += len(pixels)
        return features, self.content(features)

    def content(self, features: Array) -> Array:
        """Features [n, R, C] -> content tokens [n, k, D]."""
        graph, dtype = self._graphs.load("content"), self._features_dtype["content"]
        with self._timings.stage("content"):
            return graph.run({"features": features.astype(dtype, copy=False)})["content_tokens"]

    def context(self, features: Array, question_ids: Ids) -> dict[str, Array]:
        """Features [n, R, C], question ids [1, L] -> `context_tokens` [n, 1, D], and evidence."""
        inputs = {"features": features.astype(self._features_dtype["context"], copy=False)}
        return self._graphs.load("context").run({**inputs, "question_ids": question_ids})

    def see(self, pixels: Array, frames: Sequence[FrameTime]) -> ArrayFeatures:
        """A stream's new frames. Raises `BundleError` for a feature that is no number, or not a float16."""
        features, content = self.encode(pixels)
        for values in (features, content):
            half(values, [frame.index for frame in frames])
        return ArrayFeatures(features, content)

    def adopt(self, features: Array, *, batch: int) -> ArrayFeatures:
        """Stored features [T, R, C]; their content tokens are made, `batch` frames a run."""
        content = [self.content(piece) for piece in slices(features, batch)]
        return ArrayFeatures(features, np.concatenate(content))

    def prepare_context(self) -> None:
        """Loads what `tokens` needs, so that its time is its own."""
        self._graphs.load("context")

    def tokens(
        self,
        held: FrameFeatures,
        question_ids: Ids,
        *,
        batch: int,
        collector: EvidenceCollector | None = None,
    ) -> FrameTokens:
        """The frames in the light of a question [1, L]; `collector` gets what it looked at."""
        context, content = list[Array](), list[Array]()
        for features, tokens in held.batches(batch):
            outputs = self.context(features, question_ids)
            context.append(outputs["context_tokens"])
            content.append(tokens.copy())
            if collector is not None:
                collector.add(outputs)
        return FrameTokens(np.concatenate(context), np.concatenate(content))

    def memory(self, *, frames: int, memory_bytes: int | None) -> FeatureMemory:
        """For a video's features, by Note [Budget] in `llamavid.runtime.features.budget`."""
        return features_memory(self._graphs, frames=frames, memory_bytes=memory_bytes)

    def remember(self, memory: FeatureMemory, pixels: Array, frames: Sequence[FrameTime]) -> None:
        """Encodes frames into `memory`, each picture once: equal pixels have equal features.

        Raises:
            BundleError: a feature does not fit float16.
            DeviceError: budget and disk are full.
        """
        digests = pixel_digests(pixels)
        new = [
            i for i, digest in enumerate(digests) if not memory.holds(digest) and digest not in digests[:i]
        ]
        made = {digests[i]: at for at, i in enumerate(new)}
        features, content = self.encode(pixels[new]) if new else (pixels, pixels)
        for i, (digest, frame) in enumerate(zip(digests, frames, strict=True)):
            if memory.holds(digest):
                memory.append_equal(digest, frame_index=frame.index, pts_seconds=frame.pts_seconds)
                continue
            if digest not in made:  # it was held, and had to go for one of this batch
                features, content = self.encode(pixels[i : i + 1])
                made = {digest: 0}
            row = slice(made[digest], made[digest] + 1)
            memory.append(
                features[row],
                content[row],
                frame_indices=[frame.index],
                pts_seconds=[frame.pts_seconds],
                digests=[digest],
            )
