"""The four networks of a model, built from its dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llamavid.config import LanguageConfig, ModelConfig
from llamavid.model.compressor import Compressor
from llamavid.model.qformer import TextDecoderModel
from llamavid.model.vision import VisionEncoder

PARTS = ("vision", "text_decoder", "compressor", "language")


def text_decoder(config: ModelConfig) -> TextDecoderModel:
    """The text decoder of this model."""
    return TextDecoderModel(
        config.text_decoder, feature_width=config.vision.width, patches=config.vision.patches
    )


def language_model(language: LanguageConfig) -> LlamaForCausalLM:
    """Vicuna, as transformers has it."""
    return LlamaForCausalLM(llama_config(language))


def parameter_names(config: ModelConfig) -> set[str]:
    """Every weight that the model has, by our names. Builds it without memory."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "vision": VisionEncoder(config.vision),
            "text_decoder": text_decoder(config),
            "compressor": Compressor(config),
            "language": language_model(config.language),
        }
    return {f"{part}.{name}" for part, module in parts.items() for name, _ in module.named_parameters()}


def llama_config(language: LanguageConfig) -> LlamaConfig:
    """Our words in transformers' words."""
    return LlamaConfig(
        hidden_size=language.hidden,
        num_hidden_layers=language.layers,
        num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads,
        head_dim=language.head_dim,
        intermediate_size=language.mlp_width,
        vocab_size=language.vocab_size,
        rms_norm_eps=language.norm_eps,
        **_rope_words(language),
        max_position_embeddings=language.context_length,
        tie_word_embeddings=False,
    )


def _rope_words(language: LanguageConfig) -> dict[str, Any]:
    """RoPE, as transformers 5 spells it or as 4.57 does."""
    linear = language.rope_factor != 1
    words = {"rope_type": "linear", "factor": language.rope_factor} if linear else {"rope_type": "default"}
    if hasattr(LlamaConfig(), "rope_parameters"):
        return {"rope_parameters": {"rope_theta": language.rope_theta, **words}}
    return {"rope_theta": language.rope_theta, "rope_scaling": words if linear else None}
