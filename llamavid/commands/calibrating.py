"""calibrate: watch the model on clips, and decide what each product is rounded to."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamavid.commands.calibration_clips import Choice, material_from_files, sample_material
from llamavid.commands.extras import require_extra
from llamavid.commands.product_timing import machine, timed, why_untimed
from llamavid.console import Progress, error_line, remark

if TYPE_CHECKING:
    from llamavid.calibration.calibrate import Calibrated
    from llamavid.calibration.material import Material
    from llamavid.calibration.options import CalibrationOptions
    from llamavid.calibration.report import Report
    from llamavid.model.checkpoint import Checkpoint

SCALES = "scales.json"
INTERRUPTED = 130  # 128 and the signal's number, as a shell says it


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.argument("clips", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="The folder to make."
)
@click.option(
    "--sample", is_flag=True, help="Watch scenes of the little world, as the embedded model knows it."
)
@click.option(
    "--clips", "count", default=16, show_default=True, type=click.IntRange(1, 4096), help="How many to watch."
)
@click.option(
    "--frames", default=4, show_default=True, type=click.IntRange(1, 256), help="Of each, spread in time."
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    help="A text, one a line, or LLaVA JSON; general ones else.",
)
@click.option("--seed", default=0, show_default=True, help="Of the choice of clips and questions.")
@click.option(
    "--format",
    "frame_format",
    default="int8",
    show_default=True,
    type=click.Choice(["int8", "fp8", "int4", "none"]),
    help="Of the frame graphs.",
)
@click.option(
    "--llm-format",
    default="int4",
    show_default=True,
    type=click.Choice(["int4", "int8", "fp8", "none"]),
    help="Of the language model.",
)
@click.option(
    "--observer",
    default="output",
    show_default=True,
    type=click.Choice(["output", "absmax", "percentile", "entropy", "mse"]),
    help="Chooses the ranges of int8 and fp8.",
)
@click.option("--no-migrate", is_flag=True, help="Move no outliers from activations into weights.")
@click.option(
    "--int4-block",
    default="128",
    show_default=True,
    type=click.Choice(["32", "64", "128"]),
    help="Weights that share a scale.",
)
@click.option(
    "--frame-budget",
    type=click.FloatRange(0, min_open=True),
    help="Relative error the frame tokens may have.",
)
@click.option(
    "--llm-budget", type=click.FloatRange(0, min_open=True), help="Relative error the logits may have."
)
@click.option(
    "--plan", type=click.Path(path_type=Path), help="An edited plan.json to follow, instead of choosing one."
)
@click.option("--target", help="The device; refuses at once a format that it lacks.")
@click.option(
    "--report", "with_report", is_flag=True, help="Write report.html, .png and .json, and print a table."
)
@click.option("--replace", is_flag=True, help="Replace what another calibration left in the folder.")
@click.option("--vision-tower", help="The EVA file, instead of the one config.json names.")
@click.option(
    "--text-tokenizer", help="BERT's folder or vocab.txt, instead of bert-base-uncased near the checkpoint."
)
@click.option("--image-processor", help="Its folder, or an image size in pixels, instead of config.json's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def calibrate(
    checkpoint: Path | None,
    clips: tuple[Path, ...],
    folder: Path,
    sample: bool,
    count: int,
    frames: int,
    questions: Path | None,
    seed: int,
    target: str | None,
    with_report: bool,
    replace: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Watch CHECKPOINT on CLIPS, and choose for each product how its numbers are rounded.

    CLIPS are videos, pictures, folders of them, or .txt lists of them. Without CHECKPOINT it is the embedded
    model, which watches its sample. The folder gets scales.json and scales.npz for export, and plan.json, to
    read, edit and pass as --plan. An interrupted run goes on where it was.

    \b
    llamavid calibrate CHECKPOINT videos/ -o calibrated --report
    llamavid export CHECKPOINT -o BUNDLE --scales calibrated/scales.json
    """
    # Threads that wait for each other sleep, instead of spinning: on two cores that other work shares, the
    # sample took 12 s instead of 90. Read when PyTorch is loaded, which is below.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    extra = ("onnx", "matplotlib") if with_report else ()
    require_extra("calibrate", "torch", "transformers", "safetensors", *extra)
    where = {name: options.pop(name) for name in ("vision_tower", "text_tokenizer", "image_processor")}
    sample = _uses_sample(checkpoint, clips, sample)
    _check_target(target, options["frame_format"], options["llm_format"])
    settings, choice = _settings(options), Choice(count, frames, seed, questions)
    try:
        with Progress(quiet=as_json) as progress:
            opened = _opened(checkpoint, where)
            material = _material(opened, clips, sample, choice, progress)
            calibrated = _run(
                opened, material, folder, settings, replace=replace, on_progress=progress.update
            )
            facts = _made_from(opened, material, settings, choice)
            report = _report(calibrated, opened, settings, facts, folder, progress) if with_report else None
    except KeyboardInterrupt:
        error_line("interrupted. The same command goes on where it was")
        click.get_current_context().exit(INTERRUPTED)
    following = _next(checkpoint, folder, where)
    if as_json:
        click.echo(json.dumps(_document(calibrated, report, folder, material, following)))
        return
    if report:
        from llamavid.calibration.report import table

        click.echo(table(report) + "\n")
    click.echo(_last_line(calibrated, folder, report, following))


def _settings(options: dict[str, Any]) -> CalibrationOptions:
    from llamavid.calibration.observers import Observer
    from llamavid.calibration.options import CalibrationOptions

    return CalibrationOptions(
        observer=Observer(options.pop("observer")),
        migrate=not options.pop("no_migrate"),
        int4_block=int(options.pop("int4_block")),
        **options,
    )


def _check_target(name: str | None, *formats: str) -> None:
    """Raises `DeviceError` for a format that the device lacks, with what it has."""
    from llamavid.commands.building import named_target
    from llamavid.errors import DeviceError
    from llamavid.scales import FORMATS
    from llamavid.targets import TARGETS, dotted

    if name is None:
        if "fp8" in formats:
            remark("fp8 needs a GPU of compute capability 8.9 or later; --target checks yours")
        return
    target = named_target(name)
    for format in formats:
        if format in FORMATS and format not in target.precisions:
            having = [other.name for other in TARGETS.values() if format in other.precisions]
            offered = " or ".join(one for one in FORMATS if one in target.precisions)
            raise DeviceError(
                f"{target.name} has no {format} (compute capability {dotted(target.capability)})",
                expected=offered or "none",
                next_step=f"Choose one of these, or a target with {format}: {', '.join(having)}.",
            )


def _uses_sample(checkpoint: Path | None, clips: tuple[Path, ...], sample: bool) -> bool:
    from llamavid.errors import UsageError

    if sample and clips:
        raise UsageError(f"--sample with {clips[0]}", expected="one of them")
    if checkpoint is not None and not clips and not sample:
        raise UsageError(
            f"no clips to watch {checkpoint} on",
            expected="videos, pictures, folders or .txt lists of them",
            next_step="Name some behind the checkpoint, or pass --sample.",
        )
    return sample or checkpoint is None


def _opened(checkpoint: Path | None, where: dict[str, str | None]) -> Checkpoint:
    from llamavid.embedded import WHAT_IT_KNOWS, embedded_checkpoint
    from llamavid.model.checkpoint import open_checkpoint

    if checkpoint is None:
        remark(f"the embedded model: {WHAT_IT_KNOWS}")
    return open_checkpoint(checkpoint or embedded_checkpoint(), **where)


def _material(
    opened: Checkpoint, clips: tuple[Path, ...], sample: bool, choice: Choice, progress: Progress
) -> Material:
    preprocessing = opened.config.preprocessing
    if not sample:
        return material_from_files(clips, choice, preprocessing, progress)
    return sample_material(
        choice, preprocessing, on_clip=lambda done, total: progress.update("drawing clips", done, total)
    )


def _run(opened: Checkpoint, material: Material, *where: Any, **options: Any) -> Calibrated:
    from llamavid.calibration.calibrate import calibrate as run

    return run(opened, material, *where, **options)


def _report(
    calibrated: Calibrated,
    opened: Checkpoint,
    settings: CalibrationOptions,
    made_from: dict[str, str],
    folder: Path,
    progress: Progress,
) -> Report:
    from llamavid.calibration.figures import report_of
    from llamavid.calibration.report import write_report

    report = report_of(
        calibrated,
        opened.config,
        settings,
        made_from=made_from,
        timer=timed,
        why_untimed=why_untimed,
        on_progress=progress.update,
    )
    progress.update("drawing the report", 0, None)
    write_report(report, folder)
    return report


def _made_from(
    opened: Checkpoint, material: Material, settings: CalibrationOptions, choice: Choice
) -> dict[str, str]:
    asked = sum(len(clip.questions) for clip in material.clips)
    return {
        "checkpoint": opened.folder.resolve().name,
        "clips": f"{len(material.clips)} of seed {choice.seed}, {material.frames} frames, {asked} questions",
        "sha256 of them": material.digest,
        "observer": settings.observer.value,
        "migration": "yes" if settings.migrate else "no",
        "machine": machine(),
    }


def _document(
    calibrated: Calibrated, report: Report | None, folder: Path, material: Material, following: str
) -> dict[str, Any]:
    scales = calibrated.calibration.scales
    return {
        "scales": str(folder / SCALES),
        "checkpoint": scales.checkpoint,
        "clips": [clip.name for clip in material.clips],
        "frames": scales.frames,
        "observer": scales.observer,
        "errors": dict(calibrated.plan.measured),
        "graphs": {
            name: {"format": graph.format, "kept": list(graph.kept), "migrations": len(graph.migrations)}
            for name, graph in scales.graphs.items()
        },
        "report": report.document() if report else None,
        "next": following,
    }


def _last_line(calibrated: Calibrated, folder: Path, report: Report | None, following: str) -> str:
    graphs = calibrated.calibration.scales.graphs
    said = ", ".join(
        f"{name} {graph.format}" + (f" ({len(graph.kept)} kept)" if graph.kept else "")
        for name, graph in graphs.items()
    )
    page = f"; {folder / 'report.html'}" if report else ""
    return f"{folder / SCALES}: {said}{page}. Next: {following}"


def _next(checkpoint: Path | None, folder: Path, where: dict[str, str | None]) -> str:
    from llamavid.embedded import embedded_checkpoint

    words = ["llamavid", "export", str(checkpoint or embedded_checkpoint())]
    for name, value in where.items():
        words += [f"--{name.replace('_', '-')}", value] if value else []
    return f"{shlex.join(words)} -o BUNDLE --scales {shlex.quote(str(folder / SCALES))}"
