"""Reads a TensorRT-LLM checkpoint back as a LLaMA of transformers: a second opinion on the format.

Written from the format's description (facts/deployment, section 4), not from the writer: nothing of
`llamavid.export` or `llamavid.model` is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

ROWS = ("attention.qkv", "mlp.fc", "mlp.gate")  # what a rank has whole rows of; of the others, columns
COLUMNS = ("attention.dense", "mlp.proj")


def read_trtllm(folder: Path) -> LlamaForCausalLM:
    """The whole model in float32, ranks merged, quantized matrices as what they stand for."""
    config = json.loads((folder / "config.json").read_text())
    ranks = [load_file(folder / f"rank{rank}.safetensors") for rank in range(config["mapping"]["world_size"])]
    model = LlamaForCausalLM(_llama_config(config)).eval()
    model.load_state_dict(_state(config, ranks), strict=True)
    return model


def matrix(config: dict[str, Any], rank: dict[str, Tensor], name: str) -> Tensor:
    """What one rank's `name` multiplies its inputs with, float32 [out, in]."""
    algo, weight = config["quantization"]["quant_algo"], rank[f"{name}.weight"]
    if algo == "W4A16_AWQ":
        assert weight.dtype is torch.int8
        low, high = ((weight << 4) >> 4), (weight >> 4)  # arithmetic shifts keep the sign
        levels = torch.stack([low, high], 1).flatten(0, 1).float()  # [out, in]: even row low, odd row high
        scale = rank[f"{name}.weights_scaling_factor"].float()
        group = config["quantization"]["group_size"]
        assert scale.shape == (levels.shape[0], levels.shape[1] // group)
        return levels * scale.repeat_interleave(group, 1) * rank[f"{name}.prequant_scaling_factor"].float()
    if algo == "FP8":
        assert weight.dtype is torch.float8_e4m3fn
        assert rank[f"{name}.activation_scaling_factor"].shape == (1,)
        return weight.float() * rank[f"{name}.weights_scaling_factor"]
    assert str(weight.dtype) == f"torch.{config['dtype']}"
    return weight.float()


def _state(config: dict[str, Any], ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    first = ranks[0]
    state = {
        "model.embed_tokens.weight": first["transformer.vocab_embedding.weight"].float(),
        "model.norm.weight": first["transformer.ln_f.weight"].float(),
        "lm_head.weight": torch.cat([rank["lm_head.weight"] for rank in ranks])[
            : config["vocab_size"]
        ].float(),
    }
    for index in range(config["num_hidden_layers"]):
        here, there = f"transformer.layers.{index}", f"model.layers.{index}"
        state[f"{there}.input_layernorm.weight"] = first[f"{here}.input_layernorm.weight"].float()
        state[f"{there}.post_attention_layernorm.weight"] = first[f"{here}.post_layernorm.weight"].float()
        whole = {name: _merged(config, ranks, f"{here}.{name}") for name in ROWS[1:] + COLUMNS}
        state[f"{there}.mlp.gate_proj.weight"] = whole["mlp.fc"]
        state[f"{there}.mlp.up_proj.weight"] = whole["mlp.gate"]
        state[f"{there}.mlp.down_proj.weight"] = whole["mlp.proj"]
        state[f"{there}.self_attn.o_proj.weight"] = whole["attention.dense"]
        for name, part in _attention(config, ranks, f"{here}.attention.qkv").items():
            state[f"{there}.self_attn.{name}_proj.weight"] = part
    return state


def _merged(config: dict[str, Any], ranks: list[dict[str, Tensor]], name: str) -> Tensor:
    parts = [matrix(config, rank, name) for rank in ranks]
    return torch.cat(parts, 1 if name.endswith(COLUMNS) else 0)


def _attention(config: dict[str, Any], ranks: list[dict[str, Tensor]], name: str) -> dict[str, Tensor]:
    """Each rank has some heads of q, then of k, then of v."""
    size, world = config["head_size"], len(ranks)
    sizes = [
        config[key] // world * size
        for key in ("num_attention_heads", "num_key_value_heads", "num_key_value_heads")
    ]
    parts = [matrix(config, rank, name).split(sizes) for rank in ranks]
    return {letter: torch.cat([part[i] for part in parts]) for i, letter in enumerate("qkv")}


def _llama_config(config: dict[str, Any]) -> LlamaConfig:
    scaling = config["rotary_scaling"] or {}
    assert config["architecture"] == "LlamaForCausalLM"
    assert config["position_embedding_type"] == "rope_gpt_neox"
    assert config["hidden_act"] == "silu"
    return LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config["head_size"],
        rms_norm_eps=config["norm_epsilon"],
        max_position_embeddings=config["max_position_embeddings"],
        rope_parameters={
            "rope_theta": config["rotary_base"],
            "rope_type": scaling.get("type", "default"),
            **({"factor": scaling["factor"]} if scaling else {}),
        },
        tie_word_embeddings=False,
    )
