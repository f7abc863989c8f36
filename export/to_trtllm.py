"""From a checkpoint to what `trtllm-build` reads: the engine backend of TensorRT-LLM, up to 1.2.

    made = export_trtllm(checkpoint, Path("vicuna"), options=TrtllmOptions(tensor_parallel=2))
    print(made.build_command)

Writes `config.json` and a `rank{i}.safetensors` for each GPU, tensor by tensor: memory is that of the largest
matrix, and nothing of a failed or interrupted export stays. Knows the format from facts/deployment, 4; tests
read it back with a reader of their own, no TensorRT-LLM has read it yet.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamavid.bundle import staged_folder
from llamavid.calibrated import GraphCalibration
from llamavid.config import LanguageConfig
from llamavid.errors import UsageError
from llamavid.export.disk import require_disk
from llamavid.export.tensor_writer import Planned, TensorWriter
from llamavid.export.trtllm_formats import (
    FP8_LARGEST,
    INT8_LARGEST,
    Fp8,
    Int4Awq,
    Plain,
    Seen,
    TrtllmScales,
    WeightFormat,
)
from llamavid.export.trtllm_options import DTYPES, KV_CACHE_ALGOS, QUANT_ALGOS, TrtllmOptions, check_model
from llamavid.export.trtllm_weights import (
    HEAD,
    HEAD_SOURCE,
    Linear,
    Split,
    copied,
    head_rows,
    linears,
    padded_head,
    rank_part,
    rank_shape,
)
from llamavid.model.checkpoint import Checkpoint
from llamavid.vicuna_folder import FORMAT_VERSION, NOTE, TOKENIZER, VicunaFormat, VicunaNote, write_note

OnProgress = Callable[[str, int, int | None], None]  # what, done, of how many if known
Read = Callable[[str, torch.dtype], Tensor]  # a tensor by its name in the checkpoint


@dataclass(frozen=True)
class Made:
    """A folder, and what to do with it."""

    folder: Path
    size_bytes: int
    build_command: str  # to run where TensorRT-LLM is


def export_trtllm(
    checkpoint: Checkpoint,
    target: Path,
    *,
    options: TrtllmOptions | None = None,
    scales: TrtllmScales | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Made:
    """Writes the folder.

    Args:
        scales: of calibration. Without them int4-awq and fp8 take inputs as they are.

    Raises:
        UsageError: the model cannot be split or quantized so, or scales do not fit it.
        BundleError: the target exists.
        DeviceError: there is not enough disk.
    """
    options, scales = options or TrtllmOptions(), scales or TrtllmScales()
    language = checkpoint.config.language
    check_model(language, options)
    _check_scales(language, options, scales)
    read = _reader(checkpoint, scales.migrated)
    plan = _plan(language, options)
    size = sum(planned.nbytes for planned in plan.values()) * options.tensor_parallel
    with staged_folder(target, replace=options.replace, marker=NOTE, what="an exported Vicuna") as stage:
        require_disk(stage.parent, size, "the TensorRT-LLM checkpoint")
        with ExitStack() as stack:
            ranks = [
                stack.enter_context(TensorWriter(stage / f"rank{rank}.safetensors", plan))
                for rank in range(options.tensor_parallel)
            ]
            _write_weights(language, read, ranks, options, scales, on_progress)
        text = json.dumps(checkpoint_config(language, options), indent=1) + "\n"
        (stage / "config.json").write_text(text, encoding="utf-8")
        shutil.copyfile(checkpoint.language_tokenizer, stage / TOKENIZER)
        write_note(stage, _note(checkpoint, options))
    return Made(target, size, build_command(target, language, options))


def checkpoint_config(language: LanguageConfig, options: TrtllmOptions) -> dict[str, Any]:
    """`config.json` as TensorRT-LLM 1.2 reads it."""
    linear = {"type": "linear", "rope_type": "linear", "factor": language.rope_factor}
    quantization: dict[str, Any] = {
        "quant_algo": QUANT_ALGOS[options.quantize],
        "kv_cache_quant_algo": KV_CACHE_ALGOS[options.kv_cache],
    }
    if options.quantize != "none":
        quantization["exclude_modules"] = ["lm_head", "transformer.vocab_embedding"]
    if options.quantize == "int4-awq":
        quantization |= {"group_size": options.int4_group, "has_zero_point": False, "pre_quant_scale": True}
    return {
        "architecture": "LlamaForCausalLM",
        "dtype": options.dtype,
        "logits_dtype": "float32",
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden,
        "intermediate_size": language.mlp_width,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_size": language.head_dim,
        "hidden_act": "silu",
        "norm_epsilon": language.norm_eps,
        "max_position_embeddings": language.context_length,  # the RoPE table has so many rows
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": language.rope_theta,
        "rotary_scaling": linear if language.rope_factor != 1 else None,
        "attn_bias": False,
        "mlp_bias": False,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": options.tensor_parallel,
            "tp_size": options.tensor_parallel,
            "pp_size": 1,
        },
        "quantization": quantization,
    }


def build_command(folder: Path, language: LanguageConfig, options: TrtllmOptions) -> str:
    """The shell line that makes `FOLDER-engine` where TensorRT-LLM 1.2 and the GPU are.

    One sequence at a time, of any length the model has: all of it may be rows of the prompt table.
    """
    engine, length = folder.with_name(f"{folder.name}-engine"), language.context_length
    build = {
        "--checkpoint_dir": folder,
        "--output_dir": engine,
        "--gemm_plugin": "auto" if options.quantize == "fp8" else options.dtype,
        "--max_batch_size": 1,
        "--max_input_len": length,
        "--max_seq_len": length,
        "--max_num_tokens": length,
        "--max_multimodal_len": length,
        "--workers": options.tensor_parallel,
    }
    words = ["trtllm-build", *(str(word) for pair in build.items() for word in pair)]
    copy = ["cp", str(folder / NOTE), str(folder / TOKENIZER), str(engine)]
    return f"{shlex.join(words)} && {shlex.join(copy)}"


def _note(checkpoint: Checkpoint, options: TrtllmOptions) -> VicunaNote:
    return VicunaNote(
        format_version=FORMAT_VERSION,
        format=VicunaFormat.ENGINE,
        language=checkpoint.config.language,
        dtype=options.dtype,
        tensor_parallel=options.tensor_parallel,
        quantize=options.quantize,
        checkpoint=checkpoint.folder.name,
    )


def _format(options: TrtllmOptions) -> WeightFormat:
    dtype = DTYPES[options.dtype]
    if options.quantize == "int4-awq":
        return Int4Awq(dtype, options.int4_group)
    return Fp8() if options.quantize == "fp8" else Plain(dtype)  # int8: Note [int8]


def _plan(language: LanguageConfig, options: TrtllmOptions) -> dict[str, Planned]:
    """Every tensor of a rank."""
    dtype, ranks = DTYPES[options.dtype], options.tensor_parallel
    plan = {name: Planned(dtype, shape) for name, (_, shape) in copied(language).items()}
    plan[HEAD] = Planned(dtype, (head_rows(language, ranks), language.hidden))
    for linear in linears(language):
        planned = _format(options).planned(*rank_shape(linear, ranks))
        plan |= {linear.name + suffix: one for suffix, one in planned.items()}
    if options.kv_cache != "none":
        for name in _caches(language):
            plan[f"{name}.kv_cache_scaling_factor"] = Planned(torch.float32, (1,))
    return plan


def _reader(checkpoint: Checkpoint, migrated: GraphCalibration | None) -> Read:
    """Reads by the checkpoint's names; with the migrations that go into the weights."""

    def read(name: str, dtype: torch.dtype) -> Tensor:
        if migrated is None:
            return checkpoint.read(name, dtype)
        tensor = checkpoint.read(name, torch.float32).numpy()
        return torch.from_numpy(migrated.migrated(name.removeprefix("language."), tensor)).to(dtype)

    return read


def _write_weights(
    language: LanguageConfig,
    read: Read,
    ranks: list[TensorWriter],
    options: TrtllmOptions,
    scales: TrtllmScales,
    on_progress: OnProgress,
) -> None:
    dtype = DTYPES[options.dtype]
    for name, (source, _) in copied(language).items():
        tensor = read(source, dtype)
        for file in ranks:
            file.write(name, tensor)
    head = padded_head(read(HEAD_SOURCE, dtype), language, len(ranks))
    for file, part in zip(ranks, head.chunk(len(ranks)), strict=True):
        file.write(HEAD, part)
    del head
    matrices = list(linears(language))
    for done, linear in enumerate(matrices):
        on_progress("write", done, len(matrices))
        _write_linear(read, linear, ranks, options, scales)
    if options.kv_cache != "none":
        largest = INT8_LARGEST if options.kv_cache == "int8" else FP8_LARGEST
        for name in _caches(language):
            scale = scales.kv_cache[name] / largest if name in scales.kv_cache else 1.0
            for file in ranks:
                file.write(f"{name}.kv_cache_scaling_factor", torch.tensor([scale]))


def _write_linear(
    read: Read,
    linear: Linear,
    ranks: list[TensorWriter],
    options: TrtllmOptions,
    scales: TrtllmScales,
) -> None:
    quantized = options.quantize in ("int4-awq", "fp8")
    read_as = torch.float32 if quantized else DTYPES[options.dtype]
    sources = [read(source, read_as) for source in linear.sources]
    largest = max(float(source.abs().max()) for source in sources) if quantized else 0.0
    by_channel = [by.get(linear.scales) for by in (scales.prequant, scales.importance)]
    for rank, file in enumerate(ranks):
        part = rank_part(sources, linear.split, ranks=len(ranks), rank=rank)
        prequant, importance = (
            _rank_inputs(inputs, linear.split, ranks=len(ranks), rank=rank) for inputs in by_channel
        )
        seen = Seen(largest, prequant, importance, scales.activation.get(linear.scales))
        for suffix, tensor in _format(options).encoded(part, seen).items():
            file.write(linear.name + suffix, tensor)


def _rank_inputs(inputs: Tensor | None, split: Split, *, ranks: int, rank: int) -> Tensor | None:
    """A rank reads all inputs of a matrix that is split by rows, its own of one split by columns."""
    return inputs if inputs is None or split is Split.ROWS else inputs.chunk(ranks)[rank]


def _caches(language: LanguageConfig) -> list[str]:
    return [f"transformer.layers.{index}.attention" for index in range(language.layers)]


def _check_scales(language: LanguageConfig, options: TrtllmOptions, scales: TrtllmScales) -> None:
    """Scales that fit nothing are a mistake, and an int8 cache without them holds nothing but noise."""
    widths = {linear.scales: linear.columns for linear in linears(language)}
    caches = _caches(language)
    given = [(name, list(widths)) for name in (*scales.prequant, *scales.importance, *scales.activation)]
    for name, known in [*given, *((name, caches) for name in scales.kv_cache)]:
        if name not in known:
            raise UsageError(f"scales for {name!r}", expected=f"names like {known[0]!r}")
    for name, factors in scales.prequant.items():
        _check_inputs(f"prequant scales of {name}", factors, widths[name], least="above 0")
    for name, squares in scales.importance.items():  # 0 of a channel that nothing enters
        _check_inputs(f"importances of {name}", squares, widths[name], least="from 0 on")
    absent = set(caches) - set(scales.kv_cache)
    if options.kv_cache == "int8" and absent:
        raise UsageError(
            f"kv-cache int8 without measured ranges of {len(absent)} layers",
            expected="the largest key or value of each",
            next_step="Choose --kv-cache none, or pass --scales scales.json of `llamavid calibrate`.",
        )


def _check_inputs(what: str, inputs: Tensor, width: int, *, least: str) -> None:
    enough = inputs > 0 if least == "above 0" else inputs >= 0
    if tuple(inputs.shape) != (width,) or not bool(enough.all()):
        raise UsageError(
            f"{what} have shape {list(inputs.shape)}, the least is {float(inputs.min()):g}",
            expected=f"[{width}], all {least}",
        )
