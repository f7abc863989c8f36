"""The plain networks with random weights, made where they are used; nothing is read or downloaded.

Weights are float16 numbers, as a release's are: what computes with them in float32 is the truth, and what
computes in float16 differs by its arithmetic alone. Their scale is that of `llamavid.model.random_weights`,
but for one matrix.

Note [Scores]
    After 39 random blocks features have a std of 6.8, and so would the scores of the context attention: its
    softmax then picks one patch, and of two that nearly tie any rounding picks another. That is no property
    of arithmetic worth measuring (0.014 of noise on the features gave 0.09 on a token). The key projector is
    a quarter as large, so scores have a std under 2 and weights spread over patches.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from llamavid.config import ModelConfig
from llamavid.model.compressor import Compressor
from llamavid.model.qformer import TextDecoderModel
from llamavid.model.random_weights import BIAS_STD, EMBEDDING_STD, NORM_STD
from llamavid.model.vision import VisionEncoder

_TABLES = ("pos_embed", "embeddings.weight", "embed_tokens.weight")
Network = TypeVar("Network", bound=nn.Module)


class FrameNetworks(NamedTuple):
    """What makes two tokens of a frame."""

    vision: VisionEncoder
    text_decoder: TextDecoderModel
    compressor: Compressor

    def to(self, dtype: torch.dtype) -> FrameNetworks:
        """A copy in another dtype; these stay as they are."""
        vision, text_decoder, compressor = copy.deepcopy(self)
        return FrameNetworks(vision.to(dtype), text_decoder.to(dtype), compressor.to(dtype))


def random_frames(config: ModelConfig, device: torch.device, *, seed: int = 0) -> FrameNetworks:
    """In float32; every value is one of float16's."""
    with torch.device("meta"):
        vision, compressor = VisionEncoder(config.vision), Compressor(config)
        text_decoder = TextDecoderModel(
            config.text_decoder, feature_width=config.vision.width, patches=config.vision.patches
        )
    return FrameNetworks(
        drawn(vision, device, torch.float32, seed=seed),
        drawn(text_decoder, device, torch.float32, seed=seed + 1),
        drawn(compressor, device, torch.float32, seed=seed + 2),
    )


def drawn(module: Network, device: torch.device, dtype: torch.dtype, *, seed: int) -> Network:
    """`module`, which was built without memory, with random weights; ready to be asked."""
    generator = torch.Generator(device).manual_seed(seed)
    module = module.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for name, weight in module.named_parameters():
        mean, std = _mean_and_std(name, weight)
        weight.normal_(mean, std, generator=generator)
        weight.copy_(weight.half())
    return module


def _mean_and_std(name: str, weight: torch.Tensor) -> tuple[float, float]:
    """Matrices keep the size of what they multiply, gains are near 1, and no bias is 0."""
    if name.endswith("bias"):
        return 0.0, BIAS_STD
    if "norm" in name:
        return 1.0, NORM_STD
    if weight.dim() == 1 or name in ("queries", "cls_token") or name.endswith(_TABLES):
        return 0.0, EMBEDDING_STD
    scores = 0.25 if name == "key_projector.weight" else 1.0  # Note [Scores]
    return 0.0, scores * weight[0].numel() ** -0.5
