"""The Vicuna of a checkpoint alone, as a Hugging Face folder of a plain LLaMA.

    export_huggingface(checkpoint, Path("vicuna"))                      # for any engine
    export_huggingface(checkpoint, Path("vicuna"), module=Path(...))    # for TensorRT-LLM's PyTorch backend

Sharded safetensors, `config.json`, `generation_config.json`, tokenizer files and a README.md of what an
engine may get wrong. Memory is that of the largest tensor. Knows nothing about frames: their tokens are
embeddings.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamavid.bundle import staged_folder
from llamavid.config import LanguageConfig
from llamavid.errors import UsageError
from llamavid.export.disk import require_disk
from llamavid.export.huggingface_readme import readme
from llamavid.export.tensor_writer import Planned, TensorWriter
from llamavid.export.trtllm_options import DTYPES
from llamavid.model.checkpoint import Checkpoint
from llamavid.vicuna_folder import (
    ARCHITECTURE,
    FORMAT_VERSION,
    MODULE,
    NOTE,
    TOKENIZER,
    VicunaFormat,
    VicunaNote,
    write_note,
)

OnProgress = Callable[[str, int, int | None], None]  # what, done, of how many if known

_PREFIX = "language."  # ours; what follows is Hugging Face's name
_SHARD_BYTES = 5_000_000_000
_PLAIN_TOKENIZER = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": True,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}


@dataclass(frozen=True)
class HuggingFaceOptions:
    """Raises `UsageError` for a dtype that is not written."""

    dtype: str = "float16"
    shard_bytes: int = _SHARD_BYTES
    replace: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r}", expected=" or ".join(DTYPES))


def export_huggingface(
    checkpoint: Checkpoint,
    target: Path,
    *,
    options: HuggingFaceOptions | None = None,
    module: Path | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> int:
    """Writes the folder; returns the bytes of its weights.

    Args:
        module: the Python file that TensorRT-LLM's PyTorch backend is to load; it is copied, and the folder
            is for that backend. Without it the folder is a plain LLaMA.

    Raises:
        BundleError: the target exists.
        DeviceError: there is not enough disk.
    """
    options, language = options or HuggingFaceOptions(), checkpoint.config.language
    kind = VicunaFormat.PYTORCH if module else VicunaFormat.HUGGINGFACE
    shards = _shards(checkpoint, options)
    size = sum(planned.nbytes for plan in shards.values() for planned in plan.values())
    with staged_folder(target, replace=options.replace, marker=NOTE, what="an exported Vicuna") as stage:
        require_disk(stage.parent, size, "the Hugging Face folder")
        _write_weights(checkpoint, stage, shards, on_progress)
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: file for file, plan in shards.items() for name in plan},
        }
        _write_json(stage / "model.safetensors.index.json", index)
        _write_json(stage / "config.json", folder_config(language, options.dtype, kind))
        _write_json(stage / "generation_config.json", _generation(language))
        _write_tokenizer(checkpoint, stage)
        write_note(stage, _note(checkpoint, options, kind))
        (stage / "README.md").write_text(readme(language, checkpoint.folder.name, kind), encoding="utf-8")
        if module:
            (stage / MODULE).mkdir()
            shutil.copyfile(module, stage / MODULE / "__init__.py")
    return size


def folder_config(language: LanguageConfig, dtype: str, kind: VicunaFormat) -> dict[str, Any]:
    """`config.json`, read alike by transformers 4 and 5.

    Note [Positions]
        Where RoPE is linear, Hugging Face's custom is the length before scaling: engines multiply it by the
        factor. TensorRT-LLM's PyTorch backend makes a RoPE table of so many rows, so its folder has the
        extended length, and the runner says `max_seq_len` itself.
    """
    linear = {"type": "linear", "rope_type": "linear", "factor": language.rope_factor}
    ours = kind is VicunaFormat.PYTORCH
    before = math.ceil(language.context_length / language.rope_factor)
    return {
        "architectures": [ARCHITECTURE if ours else "LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": language.bos_id,
        "eos_token_id": language.eos_id,
        "pad_token_id": 0,
        "head_dim": language.head_dim,
        "hidden_act": "silu",
        "hidden_size": language.hidden,
        "initializer_range": 0.02,
        "intermediate_size": language.mlp_width,
        "max_position_embeddings": language.context_length if ours else before,
        "mlp_bias": False,
        "num_attention_heads": language.heads,
        "num_hidden_layers": language.layers,
        "num_key_value_heads": language.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": language.norm_eps,
        "rope_scaling": linear if language.rope_factor != 1 else None,
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": language.vocab_size,
    }


def _shards(checkpoint: Checkpoint, options: HuggingFaceOptions) -> dict[str, dict[str, Planned]]:
    """File -> its tensors by Hugging Face's names."""
    plans: list[dict[str, Planned]] = [{}]
    for ours, stored in checkpoint.tensors.items():
        if not ours.startswith(_PREFIX):
            continue
        planned = Planned(DTYPES[options.dtype], stored.shape)
        filled = sum(one.nbytes for one in plans[-1].values())
        if plans[-1] and filled + planned.nbytes > options.shard_bytes:
            plans.append({})
        plans[-1][ours.removeprefix(_PREFIX)] = planned
    return {f"model-{i:05d}-of-{len(plans):05d}.safetensors": plan for i, plan in enumerate(plans, 1)}


def _write_weights(
    checkpoint: Checkpoint, stage: Path, shards: dict[str, dict[str, Planned]], on_progress: OnProgress
) -> None:
    done, total = 0, sum(map(len, shards.values()))
    for file, plan in shards.items():
        with TensorWriter(stage / file, plan) as writer:
            for name, planned in plan.items():
                on_progress("write", done, total)
                writer.write(name, checkpoint.read(_PREFIX + name, planned.dtype))
                done += 1


def _write_tokenizer(checkpoint: Checkpoint, stage: Path) -> None:
    shutil.copyfile(checkpoint.language_tokenizer, stage / TOKENIZER)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, stage / name)
    if not (stage / "tokenizer_config.json").exists():
        _write_json(stage / "tokenizer_config.json", _PLAIN_TOKENIZER)


def _generation(language: LanguageConfig) -> dict[str, Any]:
    return {
        "bos_token_id": language.bos_id,
        "eos_token_id": language.eos_id,
        "pad_token_id": 0,
        "do_sample": False,
        "max_length": language.context_length,
    }


def _note(checkpoint: Checkpoint, options: HuggingFaceOptions, kind: VicunaFormat) -> VicunaNote:
    return VicunaNote(
        format_version=FORMAT_VERSION,
        format=kind,
        language=checkpoint.config.language,
        dtype=options.dtype,
        tensor_parallel=1,  # who loads the folder splits it
        quantize="none",
        checkpoint=checkpoint.folder.name,
    )


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
