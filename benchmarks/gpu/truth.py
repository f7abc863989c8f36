"""Frames, a question, and what the plain networks make of them in float32: every result meets it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.random_model import FrameNetworks
from llamavid.config import ModelConfig

QUESTION_TOKENS = 16
_AT_ONCE = 8  # frames
_WATCHED = 8  # frames that ranges are watched on, none of those that are compared


@dataclass(frozen=True)
class Truth:
    """All float32 but the ids."""

    pixels: Tensor  # [T, 3, S, S], random
    watched_pixels: Tensor
    ids: Tensor  # int64 [1, L]
    features: Tensor  # [T, 1+N, C]
    content: Tensor  # [T, n, D]
    hidden: Tensor  # [T, M or L, H]
    context: Tensor  # [T, 1, D]

    @property
    def tokens(self) -> Tensor:
        return torch.cat([self.context, self.content], dim=1)


@torch.inference_mode()
def truth_of(networks: FrameNetworks, config: ModelConfig, frames: int, device: torch.device) -> Truth:
    """`networks` in float32; so many random frames."""
    random = torch.Generator(device).manual_seed(100)
    side = config.vision.image_size
    drawn = torch.randn(frames + _WATCHED, 3, side, side, device=device, generator=random)
    drawn = drawn.half().float()  # what a float16 network reads, too
    ids = torch.randint(
        0, config.text_decoder.vocab_size, (1, QUESTION_TOKENS), device=device, generator=random
    )
    pixels, watched_pixels = drawn[:frames], drawn[frames:]
    with sdpa_kernel(SDPBackend.MATH):  # a fused kernel of float32 may multiply in less
        parts = [_frames_of(networks, chunk, ids) for chunk in pixels.split(_AT_ONCE)]
    features, content, hidden, context = (torch.cat(part) for part in zip(*parts, strict=True))
    return Truth(pixels, watched_pixels, ids, features, content, hidden, context)


def _frames_of(networks: FrameNetworks, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vision, decoder, compressor = networks
    features = vision(pixels)
    hidden = decoder(features, ids)
    context = compressor.context_tokens(features, compressor.text_query(hidden))
    return features, compressor.content_tokens(features), hidden, context
