"""export-llm: the language model alone, for TensorRT-LLM or another engine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from llamavid.commands.extras import require_extra
from llamavid.console import Progress, remark

FORMATS = ("engine", "pytorch", "huggingface")


@click.command("export-llm")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="The folder to make."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="engine",
    show_default=True,
    help="For trtllm-build; for TensorRT-LLM's PyTorch backend; a plain LLaMA.",
)
@click.option("--tensor-parallel", default=1, show_default=True, help="GPUs of the engine: 1, 2 or 4.")
@click.option("--dtype", default="float16", show_default=True, help="float16, bfloat16 or float32.")
@click.option(
    "--quantize", default="none", show_default=True, help="The engine's weights: none, int8, int4-awq or fp8."
)
@click.option(
    "--kv-cache",
    default="none",
    show_default=True,
    help="The engine's cache: none, fp8, or int8, which needs --scales.",
)
@click.option(
    "--int4-group", default=128, show_default=True, help="Columns of int4-awq that share a scale: 128 or 64."
)
@click.option(
    "--target", default="a100", show_default=True, help="The engine's GPU: a100, l40s, h100 or h200."
)
@click.option(
    "--scales",
    type=click.Path(path_type=Path),
    help="scales.json of `llamavid calibrate`: ranges for int4-awq, fp8 and the engine's cache.",
)
@click.option("--vision-tower", help="The EVA file, instead of the one config.json names.")
@click.option(
    "--text-tokenizer", help="BERT's folder or vocab.txt, instead of bert-base-uncased near the checkpoint."
)
@click.option("--image-processor", help="Its folder, or an image size in pixels, instead of config.json's.")
@click.option("--replace", is_flag=True, help="Replace an existing folder of this command.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as one JSON document.")
def build_llm(
    checkpoint: Path,
    folder: Path,
    kind: str,
    vision_tower: str | None,
    text_tokenizer: str | None,
    image_processor: str | None,
    as_json: bool,
    scales: Path | None,
    **options: Any,
) -> None:
    """Take the Vicuna out of a CHECKPOINT, for TensorRT-LLM on an A100 or H100, or for any other engine.

    \b
    llamavid export-llm CHECKPOINT -o vicuna --tensor-parallel 2    then the trtllm-build line that it prints
    llamavid export-llm CHECKPOINT -o vicuna --format pytorch       for TensorRT-LLM 1.2.1 and later
    llamavid export-llm CHECKPOINT -o vicuna --format huggingface   for any engine that reads a LLaMA

    Frames reach it as embeddings of a bundle of the same CHECKPOINT. TensorRT-LLM never supported Jetson
    after v0.12.0-jetson: there a bundle's own engines run.
    """
    require_extra("export", "torch", "transformers", "safetensors")
    from llamavid.errors import UsageError
    from llamavid.export.trtllm_options import TrtllmOptions

    settings = TrtllmOptions(**options)
    used = settings.quantize in ("int4-awq", "fp8") or settings.kv_cache != "none"
    if scales and not (kind == "engine" and used):
        raise UsageError(
            f"scales with format {kind}, quantize {settings.quantize} and kv-cache {settings.kv_cache}",
            expected="--quantize int4-awq or fp8, or a --kv-cache, of an engine",
        )
    if kind != "engine":
        _refuse_engine_options(settings, kind)
    elif settings.int4_group != 128 and settings.quantize != "int4-awq":
        raise UsageError(
            f"int4-group {settings.int4_group} with quantize {settings.quantize}",
            expected="--quantize int4-awq",
        )
    from llamavid.model.checkpoint import open_checkpoint

    opened = open_checkpoint(
        checkpoint, vision_tower=vision_tower, text_tokenizer=text_tokenizer, image_processor=image_processor
    )
    remark(
        "LLaMA-VID's published weights are CC BY-NC 4.0: what is made of them may not be used commercially."
    )
    with Progress(quiet=as_json) as progress:
        if kind == "engine":
            from llamavid.export.to_trtllm import export_trtllm

            found = _scales(opened, scales, settings) if scales else None
            made = export_trtllm(opened, folder, options=settings, scales=found, on_progress=progress.update)
            size, next_step = made.size_bytes, made.build_command
        else:
            size = _export_folder(opened, folder, settings, kind, progress)
            next_step = _next_step(folder, kind)
    if as_json:
        document = {"folder": str(folder), "format": kind, "size_bytes": size, "next": next_step}
        click.echo(json.dumps(document))
    else:
        click.echo(f"{folder}: {size / 1e6:,.1f} MB. Next: {next_step}")


def _scales(opened: Any, scales: Path, settings: Any) -> Any:
    from llamavid.export.frame_types import opened_calibration
    from llamavid.export.trtllm_scales import trtllm_scales

    calibration = opened_calibration(opened, scales)
    found = trtllm_scales(calibration, opened.config.language, settings)
    kept = calibration.scales.graphs["llm"].kept
    if settings.quantize == "int4-awq" and kept:
        remark(f"{len(kept)} modules that the plan keeps are rounded here all the same ({kept[0]}, ...)")
    return found


def _export_folder(opened: Any, folder: Path, settings: Any, kind: str, progress: Progress) -> int:
    import llamavid.runtime.tensorrt_llm as runner
    from llamavid.export.huggingface import HuggingFaceOptions, export_huggingface

    module = Path(str(runner.__file__)).with_name("vicuna_module.py") if kind == "pytorch" else None
    options = HuggingFaceOptions(dtype=settings.dtype, replace=settings.replace)
    return export_huggingface(opened, folder, options=options, module=module, on_progress=progress.update)


def _next_step(folder: Path, kind: str) -> str:
    if kind == "pytorch":
        return f'open_vicuna("{folder}") of llamavid.runtime.tensorrt_llm.vicuna, in docker/a100'
    return f"read {shlex.quote(str(folder / 'README.md'))}: an engine may ignore its RoPE"


def _refuse_engine_options(settings: Any, kind: str) -> None:
    """Who loads a Hugging Face folder splits and quantizes it: to write as if we had would be a lie."""
    from llamavid.errors import UsageError

    for option, given, plain in (
        ("tensor-parallel", settings.tensor_parallel, 1),
        ("quantize", settings.quantize, "none"),
        ("kv-cache", settings.kv_cache, "none"),
        ("int4-group", settings.int4_group, 128),
        ("target", settings.target, "a100"),
    ):
        if given != plain:
            raise UsageError(
                f"{option} {given} for format {kind}",
                expected=f"{plain}: who loads that folder decides it",
                next_step="Leave it out, or choose --format engine.",
            )
