"""The configuration files of a random checkpoint, as a release has them.

Takes a `Size`, gives what goes into each JSON file. Knows nothing about weights.
"""

from __future__ import annotations

import torch

from llamavid.model.random_weights import QUERIES, TEXT_POSITIONS, Size

CONTEXT_LENGTH = 4096  # tokens, before RoPE scaling


def checkpoint_config(size: Size, dtype: torch.dtype) -> dict[str, object]:
    factor = size.rope_factor
    return {
        "bert_type": size.bert_type,
        "bos_token_id": 1,
        "compress_type": size.compress_type,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "image_aspect_ratio": "pad",
        "image_processor": "./image_processor",
        "initializer_range": 0.02,
        "intermediate_size": size.mlp,
        "max_position_embeddings": CONTEXT_LENGTH,
        "max_token": int(CONTEXT_LENGTH * (factor or 1)),
        "mm_hidden_size": size.vision_width,
        "mm_projector_type": size.mm_projector_type,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "./eva_vit_g.pth",
        "model_type": "llava",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.kv_heads or size.heads,
        "num_query": QUERIES,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "linear", "factor": float(factor)} if factor else None,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": size.vocab,
    }


def bert_config(size: Size) -> dict[str, object]:
    """Of the whole BERT, however many layers `raw_bert_layer:K` keeps."""
    return {
        "architectures": ["BertLMHeadModel"],
        "hidden_act": "gelu",
        "hidden_size": size.text_width,
        "initializer_range": 0.02,
        "intermediate_size": size.text_mlp,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": TEXT_POSITIONS,
        "model_type": "bert",
        "num_attention_heads": size.text_heads,
        "num_hidden_layers": size.text_layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": size.text_vocab,
    }


def preprocessor_config(size: Size) -> dict[str, object]:
    return {
        "crop_size": size.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": size.image_size,
    }
