"""The sizes that are measured: the 7B release, its BERT variant, and tiny ones of both for tests."""

from __future__ import annotations

import dataclasses

from llamavid.config import (
    LanguageConfig,
    ModelConfig,
    Preprocessing,
    TextDecoder,
    TextDecoderConfig,
    VisionConfig,
)


def _model(
    vision: VisionConfig, text_decoder: TextDecoderConfig, language: LanguageConfig, projector_depth: int
) -> ModelConfig:
    constants = Preprocessing(vision.image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), False)
    return ModelConfig(vision, text_decoder, language, constants, 1, projector_depth)


def _raw_bert(config: ModelConfig, layers: int) -> ModelConfig:
    """The paper's other text decoder: BERT cut to its first layers, without queries (facts section 4)."""
    text = dataclasses.replace(
        config.text_decoder,
        kind=TextDecoder.RAW_BERT,
        layers=layers,
        queries=0,
        image_width=config.text_decoder.width,
        projects_image=True,
    )
    return dataclasses.replace(config, text_decoder=text)


# Facts, head of the page and sections 3 and 4. Context: a movie's 7,200 tokens, and what is asked.
REAL = _model(
    VisionConfig(image_size=224, patch_size=14, width=1408, depth=39, heads=16, mlp_width=6144),
    TextDecoderConfig(
        kind=TextDecoder.Q_FORMER,
        width=768,
        layers=12,
        heads=12,
        mlp_width=3072,
        vocab_size=30523,
        max_positions=512,
        image_width=1408,
        queries=32,
        projects_image=False,
    ),
    LanguageConfig(
        hidden=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=128,
        mlp_width=11008,
        vocab_size=32000,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_factor=16.0,
        context_length=65536,
    ),
    projector_depth=2,
)
# As small as every path allows: head size 88, an odd number of patches, two layers with cross-attention and
# two without, shared keys and values.
TINY = _model(
    VisionConfig(image_size=70, patch_size=14, width=176, depth=3, heads=2, mlp_width=384),
    TextDecoderConfig(
        kind=TextDecoder.Q_FORMER,
        width=96,
        layers=4,
        heads=4,
        mlp_width=192,
        vocab_size=160,
        max_positions=64,
        image_width=176,
        queries=8,
        projects_image=False,
    ),
    LanguageConfig(
        hidden=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        mlp_width=352,
        vocab_size=448,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_factor=4.0,
        context_length=512,
    ),
    projector_depth=2,
)
SIZES = {
    "7b": REAL,
    "7b-bert": _raw_bert(REAL, layers=2),
    "tiny": TINY,
    "tiny-bert": _raw_bert(TINY, layers=2),
}
TINY_SIZES = ("tiny", "tiny-bert")
