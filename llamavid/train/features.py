"""What a sample's frames look like to the frozen encoder: computed once, kept on disk.

The encoder learns in no stage, so its features are a function of the file, the tower and the
preprocessing; their digest names the cache entry. Stored float16, as the reference stores a movie's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamavid.model.llamavid import LlamaVid
from llamavid.train.examples import Sample

ReadPixels = Callable[[Path], npt.NDArray[np.float32]]  # a clip or picture -> [T, 3, S, S]


class FrameFeatures:
    """`features(model, sample)` -> [T, 1+N, C], or None for text."""

    def __init__(self, cache: Path, read_pixels: ReadPixels) -> None:
        """`read_pixels` prepares a file's frames; handed in, as training does not import the runtime."""
        self._cache = cache
        self._read_pixels = read_pixels
        self._tower = ""
        cache.mkdir(parents=True, exist_ok=True)

    def __call__(self, model: LlamaVid, sample: Sample) -> Tensor | None:
        if sample.path is None:
            return None
        self._tower = self._tower or _tower_digest(model)
        stored = self._cache / f"{_digest(sample.path, self._tower)}.safetensors"
        if not stored.exists():
            _write(stored, model.encode_frames(torch.from_numpy(self._read_pixels(sample.path))))
        return load_file(stored)["features"]


def _digest(file: Path, tower: str) -> str:
    return hashlib.sha256(file.read_bytes() + tower.encode()).hexdigest()


def _tower_digest(model: LlamaVid) -> str:
    """Of the encoder's weights and the preprocessing."""
    digest = hashlib.sha256(json.dumps(asdict(model.config.preprocessing)).encode())
    for parameter in model.vision.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _write(file: Path, features: Tensor) -> None:
    """Beside, then renamed; two processes may write the same."""
    beside = file.with_suffix(f".{os.getpid()}")
    save_file({"features": features.to("cpu", torch.float16).contiguous()}, beside)
    beside.rename(file)
