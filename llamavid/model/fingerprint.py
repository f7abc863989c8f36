"""Which checkpoint is it: one sha256 of names, shapes and numbers, in seconds for any size.

Scales and scans carry it, so that those of one checkpoint are refused for another.
"""

from __future__ import annotations

import hashlib

import torch

from llamavid.model.checkpoint import Checkpoint

_PARTS = ("vision.", "text_decoder.", "compressor.")


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256, hex, over every tensor's name and shape, and over the numbers of the frame networks' small
    tensors and of some of each large one.

    Any training changes all numbers of a tensor, so some tell it; this is no check against tampering. The
    language model counts by its shapes alone: its shards are most of the bytes, and no scale is of it.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        digest.update(f"{name} {list(checkpoint.tensors[name].shape)}\n".encode())
        if name.startswith(_PARTS):
            values = checkpoint.read(name, torch.float32).flatten()
            every = max(1, len(values) // 1024)
            digest.update(values[::every].numpy().astype("<f4").tobytes())
    return digest.hexdigest()
