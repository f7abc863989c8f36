"""The three frame graphs: pixels to features and content tokens, and these to a question's frame tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llamavid.runtime.features.memory import FeatureMemory, pixel_digests
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.frames import FrameTime

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

CONTEXT_BATCH = 8  # frames a run of the content and context graphs: more take 12 MB each, and help no CPU


class FrameEncoder:
    """Runs `vision`, `content` and `context`. One thread at a time. `encoded` counts vision's frames."""

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
