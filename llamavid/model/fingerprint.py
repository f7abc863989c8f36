"""Which checkpoint is it: one sha256 of names, shapes and numbers, in seconds for any size.

Scales and scans carry it, so that those of one checkpoint are refused for another.
"""

from __future__ import annotations

import hashlib

import torch

from llamavid.model.checkpoint import Checkpoint

_GLIMPSE = 512  # numbers at a time


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256, hex, over every tensor's name and shape, and over some of its numbers as float32.

    Training changes all numbers of a tensor, so those at its beginning, middle and end tell it, and a 13 GB
    language model is told apart without being read; this is no check against tampering.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        stored = checkpoint.tensors[name]
        digest.update(f"{name} {list(stored.shape)}\n".encode())
        values = stored.source.glimpse(stored.name, _GLIMPSE).to(torch.float32)
        digest.update(values.numpy().astype("<f4").tobytes())
    return digest.hexdigest()
