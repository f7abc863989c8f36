"""export and train: what needs PyTorch."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import click

from llamavid.commands.error_table import print_row, row_document
from llamavid.commands.extras import require_extra
from llamavid.console import Progress, remark

_SCANNED_FRAMES = 64  # of one clip, one a second; memory has an end
_SHOWN_ACTIVATIONS = 3


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "bundle", required=True, type=click.Path(path_type=Path), help="The bundle to make."
)
@click.option("--vision-tower", help="The EVA file, instead of the one config.json names.")
@click.option(
    "--text-tokenizer", help="BERT's folder or vocab.txt, instead of bert-base-uncased near the checkpoint."
)
@click.option("--image-processor", help="Its folder, or an image size in pixels, instead of config.json's.")
@click.option(
    "--precision",
    help="Of the frame graphs: fp32, fp16, bf16 (GPUs only), int8, fp8 (GPUs from Ada on) or int4. "
    "Default: what --scales are for, else fp32.",
)
@click.option(
    "--compute", help="fp32 or fp16, around int8, fp8 and int4; fp32 with int8 and fp16 else, by default."
)
@click.option(
    "--scales",
    type=click.Path(path_type=Path),
    help="scales.json of `llamavid calibrate`: ranges of activations, and what to round.",
)
@click.option(
    "--scan",
    "clips",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A clip to choose each layer's type by, and int8's ranges without --scales. May be repeated.",
)
@click.option(
    "--llm-precision",
    help="Of the language model: the same names. int8 and fp8 need --scales.",
)
@click.option(
    "--int4-block",
    type=int,
    help="Weights that share a scale: 32, 64 or 128. Default: what --scales are for, else 32.",
)
@click.option(
    "--kv-cache",
    help="Keys and values on a CPU: fp32, fp16 (half the memory) or int8 (a quarter, and faster behind a "
    "long video; needs --scales). Default: as products.",
)
@click.option("--template", default="vicuna_v1", show_default=True, help="The bundle's prompt template.")
@click.option(
    "--rewrites",
    default="all",
    show_default=True,
    metavar="all|none|NAME,...",
    help="Exact rewrites; none writes the plain form.",
)
@click.option("--replace", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the table of errors as one JSON document.")
def export(
    checkpoint: Path,
    bundle: Path,
    vision_tower: str | None,
    text_tokenizer: str | None,
    image_processor: str | None,
    clips: tuple[Path, ...],
    as_json: bool,
    scales: Path | None,
    rewrites: str,
    **options: Any,
) -> None:
    """Turn a CHECKPOINT in its release layout into a bundle.

    Every graph is compared with the PyTorch model; one that differs by more than its tolerance fails the
    export (exit 1) and leaves no bundle.
    """
    require_extra("export", "torch", "transformers", "onnx", "safetensors")
    from llamavid.export.pack import ExportOptions, export_bundle, formats_of
    from llamavid.export.rewrites import parsed_rewrites
    from llamavid.export.verify import Runner
    from llamavid.model.checkpoint import open_checkpoint
    from llamavid.runtime.clip import first_pixels
    from llamavid.runtime.parity import run_graph, run_language

    given = {name: value for name, value in options.items() if value is not None}
    given["rewrites"] = parsed_rewrites(rewrites)
    settings = ExportOptions(scales=scales, **(formats_of(scales) if scales else {}) | given)
    opened = open_checkpoint(
        checkpoint, vision_tower=vision_tower, text_tokenizer=text_tokenizer, image_processor=image_processor
    )
    remark(
        "LLaMA-VID's published weights are CC BY-NC 4.0: a bundle made of them may not be used commercially."
    )
    for name in opened.unexpected:
        remark(f"unexpected tensor {name} is left out")
    remark(f"{len(opened.tensors)} tensors; {len(opened.dropped)} known and not needed")
    if clips and settings.frame.eight_bits and not settings.scales:
        remark("ranges are the largest values of these clips: `llamavid calibrate` chooses better ones")
    with Progress(quiet=as_json) as progress:
        manifest = export_bundle(
            opened,
            bundle,
            runner=Runner(run_graph, run_language),
            options=settings,
            frames=first_pixels(clips, opened.config.preprocessing, frames=_SCANNED_FRAMES)
            if clips
            else None,
            on_scan=lambda seen: _print_scan(progress, seen),
            on_progress=progress.update,
            on_row=lambda row: None if as_json else print_row(progress, row),
        )
    if as_json:
        rows = [row_document(row) for row in manifest.parity]
        click.echo(json.dumps({"bundle": str(bundle), "parity": rows}))
    else:
        size = sum(entry.size for entry in manifest.files.values())
        click.echo(
            f'{bundle}: {size / 1e6:,.1f} MB. Next: llamavid ask {shlex.quote(str(bundle))} VIDEO "question"'
        )


def _print_scan(progress: Progress, seen: Any) -> None:
    from llamavid.export.activations import rows

    progress.close()
    for row in rows(seen)[:_SHOWN_ACTIVATIONS]:
        remark(
            f"{row.graph} {row.name} ({row.what}): at most {row.largest:.4g} in {seen.frames} frames, "
            f"{row.headroom:.3g} times below the end of float16"
        )


@click.command()
@click.argument("stage", type=click.Choice(["stage1", "stage2", "stage3"]))
@click.option("--config", type=click.Path(path_type=Path), help="A JSON object of settings.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="One setting; replaces the file's.")
@click.option("--json", "as_json", is_flag=True, help="Print how it ended as one JSON document.")
def train(stage: str, config: Path | None, pairs: tuple[str, ...], as_json: bool) -> None:
    """Run one of the three training STAGEs, or continue it.

    \b
    python -m llamavid.train.start --help      (a START out of published weights)
    llamavid train stage1 --set checkpoint=START --set data=captions.json --set output=stage1
    llamavid train stage2 --set checkpoint=stage1/checkpoint --set data=instructions.json --set output=stage2

    An interrupted run continues where it was saved last when it is started again. Any field of a stage can
    be set: batch_size, learning_rate, epochs, max_tokens. On many GPUs: accelerate launch -m llamavid train.
    """
    require_extra("train", "torch", "transformers", "accelerate", "matplotlib")
    from functools import partial

    from llamavid.model.checkpoint import open_checkpoint
    from llamavid.runtime.clip import clip_pixels
    from llamavid.train.features import FrameFeatures
    from llamavid.train.loop import train as run_stage
    from llamavid.train.run import parsed, run_from

    run = run_from(stage, config, parsed(pairs))
    opened = open_checkpoint(
        run.paths.checkpoint,
        vision_tower=run.paths.vision_tower,
        text_tokenizer=run.paths.text_tokenizer,
        image_processor=run.paths.image_processor,
    )
    cache = run.paths.feature_cache or run.settings.output / "features"
    read = partial(clip_pixels, preprocessing=opened.config.preprocessing, fps=run.paths.fps)
    is_main = os.environ.get("RANK", "0") == "0"  # as a launcher numbers its processes
    with Progress(quiet=as_json or not is_main) as progress:
        watch = _TrainingWatch(stage, progress)
        outcome = run_stage(
            run.stage,
            opened,
            run.paths.data,
            run.settings,
            features=FrameFeatures(cache, read, on_encoded=watch.encoded),
            on_step=watch.step,
        )
    if as_json and is_main:
        record = json.loads((run.settings.output / "training.json").read_text(encoding="utf-8"))
        click.echo(json.dumps({"checkpoint": str(outcome), **watch.summary(), **record}))
    elif is_main:
        click.echo(f"{outcome}. Next: llamavid export {shlex.quote(str(outcome))} -o BUNDLE")


class _TrainingWatch:
    """Follows a run: steps, loss and what is left of the time; clips, while the encoder sees them first."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self._stage, self._progress = stage, progress
        self._start = time.monotonic()
        self._encoded = 0
        self._steps_here = 0
        self._at: Any = None

    def encoded(self) -> None:
        self._encoded += 1
        done, total = (self._at.step, self._at.steps) if self._at else (0, None)
        self._progress.update(self._stage, done, total, f"{self._encoded} clips encoded")

    def step(self, at: Any) -> None:
        self._at = at
        self._steps_here += 1
        seconds = (time.monotonic() - self._start) / self._steps_here * (at.steps - at.step)
        left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        self._progress.update(self._stage, at.step, at.steps, f"loss {at.loss:.3f}, {left} left")

    def summary(self) -> dict[str, Any]:
        """`steps` and `loss` as they were last; null when nothing was left to do."""
        return {
            "steps": self._at and self._at.steps,
            "loss": self._at and self._at.loss,
            "seconds": round(time.monotonic() - self._start, 1),
        }
