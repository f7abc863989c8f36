"""A checkpoint small enough to be watched in a second, and something to watch it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamavid.calibration.material import Clip, Material
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY

SMALL = replace(TINY, image_size=56, vision_depth=2, text_layers=3)


def write_small(folder: Path, seed: int = 3, **dimensions: Any) -> Path:
    """The checkpoint's folder."""
    return (
        write_random_checkpoint(folder, replace(SMALL, **dimensions), seed=seed, dtype=torch.float32)
        / "checkpoint"
    )


def small_checkpoint(folder: Path, seed: int = 3, **dimensions: Any) -> Checkpoint:
    return open_checkpoint(write_small(folder, seed, **dimensions))


def small_material(seed: int = 0, size: int = SMALL.image_size) -> Material:
    """Two clips of 3 and 9 frames, three questions: one clip more than a batch."""
    rng = np.random.default_rng(seed)
    first, second = (rng.normal(0, 1, (n, 3, size, size)).astype(np.float32) for n in (3, 9))
    return Material(
        (
            Clip("first", first, ("What happens?", "How many people are there?")),
            Clip("second", second, ("What color is it?",)),
        )
    )


def changed_weight(checkpoint: Path, name: str, change: Callable[[torch.Tensor], object]) -> None:
    """Changes one stored tensor of a checkpoint or its tower, in place."""
    for file in (checkpoint.parent / "eva_vit_g.pth", *sorted(checkpoint.glob("*.bin"))):
        tensors = torch.load(file, weights_only=True)
        if name in tensors:
            change(tensors[name])
            torch.save(tensors, file)
            return
    raise AssertionError(f"{name} is nowhere")
