"""The published computation in PyTorch, float32, eager and by torch.compile: what ours is measured against.

    network = encoder(checkpoint)                   # or text_related(checkpoint, ids)
    sides = {"PyTorch eager": eager(network)}
    try:
        sides["torch.compile"] = compiled(network, example)
    except NotCompiledError as error:
        lines.append(Line("torch.compile", None, "", str(error)))
    sides |= both_ways(eager(network))

Sides take and give float32 arrays. torch.compile needs a C++ compiler; its first run, which compiles, takes
a minute, so it is made here and not measured.

Note [Multiplied out]
    The published code multiplies q by k, takes the softmax and multiplies by v, in an operation each; our
    modules call `scaled_dot_product_attention`, which computes the same in one. `both_ways` gives both: who
    judges, judges against the faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llamavid.model.checkpoint import Checkpoint
from llamavid.model.streamed import token_networks
from llamavid.model.vision import VisionEncoder

Array = np.ndarray[Any, Any]
Network = Callable[[Tensor], Tensor]
Side = Callable[[Array], Array]

MULTIPLIED = "published computation (PyTorch eager float32, attention multiplied out)"
FUSED = "published computation (PyTorch eager float32, attention fused)"


class NotCompiledError(Exception):
    """torch.compile is of no use here; says why, in one line."""


def encoder(checkpoint: Checkpoint) -> Network:
    """pixels [n, 3, S, S] -> features [n, 1+N, C]."""
    with torch.device("meta"):
        network = VisionEncoder(checkpoint.config.vision)
    checkpoint.fill("vision", network, dtype=torch.float32, device="cpu")
    return network.eval()


def text_related(checkpoint: Checkpoint, question_ids: Array) -> Network:
    """features [n, R, C] -> context tokens [n, 1, D]; question_ids int64 [1, L].

    As published, every frame is asked the whole question: nothing of it is shared between frames.
    """
    decoder, compressor = token_networks(checkpoint)
    ids = torch.from_numpy(question_ids)

    def run(features: Tensor) -> Tensor:
        asked = ids.expand(len(features), -1)
        return compressor.context_tokens(features, compressor.text_query(decoder(features, asked)))

    return run


def eager(network: Network) -> Side:
    @torch.inference_mode()
    def run(array: Array) -> Array:
        return network(torch.from_numpy(array)).numpy()

    return run


def compiled(network: Network, example: Array) -> Side:
    """For arrays of `example`'s shape.

    Raises:
        NotCompiledError: there is no C++ compiler, or inductor fails, or gives other numbers.
    """
    try:
        side = eager(torch.compile(network, dynamic=False))
        made = side(example)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:  # inductor's are of both kinds
        raise NotCompiledError(f"torch.compile fails here: {_first_line(error)}") from error
    exact = eager(network)(example)
    off = float(np.linalg.norm(made - exact) / np.linalg.norm(exact))
    if not off < _TOLERANCE:
        raise NotCompiledError(f"torch.compile gives other numbers: relative error {off:.1e}")
    return side


_TOLERANCE = 1e-3  # float32 in another order, through many blocks


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def both_ways(side: Side) -> dict[str, Side]:
    """By how its attentions multiply: Note [Multiplied out]."""

    def multiplied(array: Array) -> Array:
        with _multiplied_out():
            return side(array)

    return {MULTIPLIED: multiplied, FUSED: side}


@contextmanager
def _multiplied_out() -> Iterator[None]:
    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """q [..., R, d], k and v [..., K, d] -> [..., R, d]."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1) @ v
