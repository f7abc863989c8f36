"""What a sample's frames look like to the frozen encoder: computed once, kept on disk.

The encoder learns in no stage, so its features are a function of the file, the tower and the
preprocessing; their digest names the cache entry. Stored float16, as the reference stores a movie's.
A movie comes with its features and runs no encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamavid.feature_file import check_fits, read_features
from llamavid.model.llamavid import LlamaVid
from llamavid.replacing import replacing
from llamavid.train.examples import Media, Sample
from llamavid.train.state import writing

ReadPixels = Callable[[Path], npt.NDArray[np.float32]]  # a clip or picture -> [T, 3, S, S]


class FrameFeatures:
    """`features(model, sample)` -> float16 [T, R, C], or None for text; mapped from a file."""

    def __init__(
        self, cache: Path, read_pixels: ReadPixels, *, on_encoded: Callable[[], None] = lambda: None
    ) -> None:
        """`read_pixels` prepares a file's frames; handed in, as training does not import the runtime.

        `on_encoded` is called after each file that the encoder has seen for the first time.
        """
        self._cache = cache
        self._read_pixels = read_pixels
        self._on_encoded = on_encoded
        self._tower = ""
        self._checked: set[Path] = set()
        with writing(cache):
            cache.mkdir(parents=True, exist_ok=True)

    def __call__(self, model: LlamaVid, sample: Sample) -> Tensor | None:
        """Raises `SourceError` for a file that cannot be decoded, or features that are not this encoder's."""
        if sample.path is None:
            return None
        if sample.media is Media.MOVIE:
            return self._movie(model, sample.path)
        self._tower = self._tower or _tower_digest(model)
        stored = self._cache / f"{_digest(sample.path, self._tower)}.safetensors"
        if not stored.exists():
            _write(stored, model.encode_frames(torch.from_numpy(self._read_pixels(sample.path))))
            self._on_encoded()
        return load_file(stored)["features"]

    def _movie(self, model: LlamaVid, path: Path) -> Tensor:
        if path not in self._checked:
            check_fits(read_features(path), model.config.vision, path)
            self._checked.add(path)
        return load_file(path)["features"]


def _digest(file: Path, tower: str) -> str:
    return hashlib.sha256(file.read_bytes() + tower.encode()).hexdigest()


def _tower_digest(model: LlamaVid) -> str:
    """Of the encoder's weights and the preprocessing."""
    digest = hashlib.sha256(json.dumps(asdict(model.config.preprocessing)).encode())
    for parameter in model.vision.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _write(file: Path, features: Tensor) -> None:
    """Two processes may write the same."""
    with writing(file), replacing(file) as beside:
        save_file({"features": features.to("cpu", torch.float16).contiguous()}, beside)
