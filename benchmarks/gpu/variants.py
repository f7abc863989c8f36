"""What stands beside what: the published computation and ours, as the four modules of the paper's Table 9.

A `Variant` is a line of the table; `stages` makes its four functions out of the plain networks. They are run
eagerly here; `frames.py` times them, as CUDA graphs where the variant says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.compiling import compiled_for, not_compiled
from benchmarks.gpu.fast_context import FastContext
from benchmarks.gpu.fast_decoder import FastDecoder, Image, Rewrites
from benchmarks.gpu.fast_encoder import FastEncoder
from benchmarks.gpu.fp8 import EightBits, watch_ranges
from benchmarks.gpu.musts import PUBLISHED
from benchmarks.gpu.published import published_features, published_hidden
from benchmarks.gpu.random_model import FrameNetworks


@dataclass(frozen=True)
class Variant:
    """One line."""

    name: str
    precision: str = "float16"  # a key of `errors.BOUNDS`; float8: the encoder's products
    ours: bool = True
    compiled: bool = False
    graphed: bool = False
    compile_seconds: float = (
        0.0  # at one batch, of what no variant before has compiled: a guess, on the safe side
    )

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.precision == "float8" else getattr(torch, self.precision)


# In the order in which they are measured.
VARIANTS = (
    Variant(PUBLISHED, ours=False),
    Variant("ours, eager"),
    Variant("ours, CUDA graphs", graphed=True),
    Variant("ours, CUDA graphs, bfloat16", "bfloat16", graphed=True),
)
# What a variant has compiled serves the next ones of its side.
COMPILED_VARIANTS = (
    Variant("ours, compiled, CUDA graphs", compiled=True, graphed=True, compile_seconds=50),
    Variant("published, torch.compile", ours=False, compiled=True, compile_seconds=40),
    Variant("published, torch.compile, CUDA graphs", ours=False, compiled=True, graphed=True),
    Variant(
        "ours, compiled, CUDA graphs, float8 encoder",
        "float8",
        compiled=True,
        graphed=True,
        compile_seconds=20,
    ),
)
LAST_VARIANTS = (
    Variant(
        "ours, compiled, CUDA graphs, bfloat16", "bfloat16", compiled=True, graphed=True, compile_seconds=50
    ),
)


@dataclass(frozen=True)
class Choices:
    """What was measured before the lines, and is used in ours."""

    head_size: int | None = None  # of the encoder's padded heads
    image: Image = Image.ONE_PRODUCT


class Stages(NamedTuple):
    """features [T, 1+N, C], hidden [T, M or L, H]; what the decoder reads is `keep(features)`."""

    encoder: Callable[[Tensor], Tensor]  # pixels [T, 3, S, S] -> features
    content: Callable[[Tensor], Tensor]  # features -> [T, n, D]
    keep: Callable[[Tensor], Tensor] | None  # before any question; None: the features themselves
    decoder: Callable[[Tensor], Tensor]  # -> hidden
    context: Callable[[Tensor, Tensor], Tensor]  # features, hidden -> [T, 1, D]

    def kept(self, features: Tensor) -> Tensor:
        return self.keep(features) if self.keep else features

    def tokens(self, pixels: Tensor) -> Tensor:
        """Pixels to frame tokens [T, 1+n, D], everything in one go."""
        features = self.encoder(pixels)
        return torch.cat([self.asked(features, self.kept(features)), self.content(features)], dim=1)

    def asked(self, features: Tensor, kept: Tensor) -> Tensor:
        """The text-related part alone."""
        return self.context(features, self.decoder(kept))


def stages(
    variant: Variant, networks: FrameNetworks, ids: Tensor, watched_pixels: Tensor, choices: Choices
) -> Stages:
    """Of one question.

    Args:
        networks: the plain ones, in the variant's dtype.
        ids: int64 [1, L].
        watched_pixels: frames that the ranges of float8 are watched on; none of those that are compared.
    """
    compile_ = compiled_for(ids.device) if variant.compiled else not_compiled
    if variant.ours:
        return _ours(variant, networks, ids, watched_pixels, choices)
    vision, decoder, compressor = networks
    content, context = compile_(type(compressor).content_tokens), compile_(_published_context)
    return Stages(
        lambda pixels: published_features(vision, pixels, compile=compile_),
        lambda features: content(compressor, features),
        None,
        lambda features: published_hidden(decoder, features, ids, compile=compile_),
        lambda features, hidden: context(compressor, features, hidden),
    )


def _ours(
    variant: Variant, networks: FrameNetworks, ids: Tensor, watched_pixels: Tensor, choices: Choices
) -> Stages:
    compile_ = compiled_for(ids.device) if variant.compiled else not_compiled
    encoder = FastEncoder(networks.vision, head_size=choices.head_size, compile=compile_)
    if variant.precision == "float8":
        watched = FastEncoder(networks.vision, head_size=choices.head_size)  # compiled code sees no hook
        largest = watch_ranges(watched, watched_pixels.to(variant.dtype))
        encoder.replace_products(lambda name, dense: EightBits(dense, largest[name]))
    decoder = FastDecoder(networks.text_decoder, Rewrites(image=choices.image), compile=compile_)
    context = FastContext(networks.compressor, compile=compile_)
    content = compile_(type(networks.compressor).content_tokens)
    question = decoder.question(ids)  # once a question: no frame pays for it
    keeps = choices.image is Image.KEPT
    return Stages(
        encoder,
        lambda features: content(networks.compressor, features),
        decoder.image if keeps else None,
        lambda seen: decoder(seen if keeps else decoder.image(seen), question),
        context,
    )


def _published_context(compressor, features: Tensor, hidden: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return compressor.context_tokens(features, compressor.text_query(hidden))
