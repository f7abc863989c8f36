"""Watches the PyTorch reference on real frames: how large its activations get.

    seen = scan_activations(checkpoint, pixels)       pixels float32 [n, 3, S, S], normalized
    seen.graphs["vision"].sums["blocks.3.mlp"]        the largest magnitude of that residual sum

Runs in float32, one encoder block in memory at a time. Names are those of modules, as in the
graphs. Decoding clips is the runtime's: the caller hands in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from llamavid.errors import UsageError
from llamavid.export.activations import FORMAT_VERSION, Activations, GraphActivations
from llamavid.export.meter import Meter
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.compressor import Compressor
from llamavid.model.fingerprint import fingerprint
from llamavid.model.streamed import BATCH, streamed_features, token_networks
from llamavid.model.watching import watched
from llamavid.tokenizer import QuestionTokenizer

QUESTIONS = (
    "What happens in the video, and what color is it?",
    "How many people are there?",
    "Describe this video in detail.",
)

CONTEXT = "compressor.context"  # the context attention, as graphs name it

Pixels = npt.NDArray[np.float32]


def scan_activations(
    checkpoint: Checkpoint, pixels: Pixels, *, on_block: Callable[[int, int], None] = lambda done, of: None
) -> Activations:
    """Watches the reference on frames [n, 3, S, S].

    Raises:
        UsageError: there is no frame.
        CheckpointError: an activation is not a number in float32.
    """
    if not len(pixels):
        raise UsageError("no frame to scan", expected="at least one", next_step="Pass a clip to --scan.")
    vision, content, context = Meter("vision"), Meter("content"), Meter("context")
    features = _features(checkpoint, pixels, vision, on_block)
    _watch_tokens(checkpoint, features, content, context)
    return Activations(
        FORMAT_VERSION,
        fingerprint(checkpoint),
        hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(),
        len(pixels),
        {meter.graph: GraphActivations(**meter.largest) for meter in (vision, content, context)},
    )


def _features(
    checkpoint: Checkpoint, pixels: Pixels, meter: Meter, on_block: Callable[[int, int], None]
) -> torch.Tensor:
    blocks = iter(range(checkpoint.config.vision.depth + 1))

    def around(part: str, module: nn.Module) -> AbstractContextManager[None]:
        on_block(next(blocks), checkpoint.config.vision.depth)
        return watched(module, part.removeprefix("vision").removeprefix("."), meter)

    return streamed_features(checkpoint, torch.from_numpy(pixels), around=around)


@torch.inference_mode()
def _watch_tokens(checkpoint: Checkpoint, features: torch.Tensor, content: Meter, context: Meter) -> None:
    decoder, compressor = token_networks(checkpoint)
    with watched(compressor, "", content):
        for frames in features.split(BATCH):
            compressor.content_tokens(frames)
    tokenizer = QuestionTokenizer(checkpoint.question_vocabulary)
    with watched(decoder, "text_decoder", context), watched(compressor, "compressor", context):
        for question in QUESTIONS:
            ids = torch.from_numpy(tokenizer.ids(question))
            for frames in features.split(BATCH):
                _ask(compressor, compressor.text_query(decoder(frames, ids)), frames, context)


def _ask(compressor: Compressor, query: torch.Tensor, frames: torch.Tensor, meter: Meter) -> None:
    compressor.context_tokens(frames, query)
    patches = frames[:, -compressor.config.vision.patches :]
    keys = compressor.key_projector(patches)
    for rows in (query, keys, patches):
        meter.see("operands", CONTEXT, rows)
    meter.see("scores", CONTEXT, query @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5)
