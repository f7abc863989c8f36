"""The command line: parse, one call, print.

Heavy imports are inside the commands, so that `llamavid --help` answers at once.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamavid import __version__
from llamavid.console import Progress, error_line, printable, remark
from llamavid.errors import LlamaVidError, PromptError

if TYPE_CHECKING:
    from llamavid.runtime.session import Answer, VideoSession


class OneLineErrors(click.Group):
    """A user's mistake is one line on stderr and an exit code, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        warnings.showwarning = lambda message, *where, **more: remark(str(message))
        try:
            return super().invoke(ctx)
        except LlamaVidError as error:
            error_line(str(error))
            ctx.exit(error.exit_code)
        except BrokenPipeError:  # the reader has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:  # a full disk, a folder without permission
            error_line(f"{error.filename or ctx.invoked_subcommand}: {error.strerror or error}")
            ctx.exit(1)


@click.group(
    cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="llamavid")
def main() -> None:
    """LLaMA-VID on the device: ask questions about local video files.

    \b
    llamavid export CHECKPOINT -o BUNDLE      a checkpoint becomes a bundle
    llamavid ask BUNDLE clip.mp4 "question"   the bundle answers
    """


def answering_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `ask` and `chat` share."""
    options = [
        click.option("--fps", default=1.0, show_default=True, help="Frames a second to look at."),
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1),
            default=256,
            show_default=True,
            help="The longest answer, in tokens.",
        ),
        click.option(
            "--temperature", default=0.0, show_default=True, help="0 is greedy; higher is more varied."
        ),
        click.option(
            "--top-p", default=1.0, show_default=True, help="Sample among the most likely tokens only."
        ),
        click.option(
            "--seed", default=0, show_default=True, help="Of sampling; the same seed, the same answer."
        ),
        click.option("--template", help="vicuna_v1, imgsp_v1 or llava_v1; the bundle's own when left out."),
        click.option(
            "--truncate-question", is_flag=True, help="Drop the beginning of a question that is too long."
        ),
        click.option(
            "--threads", type=click.IntRange(1), help="Of one operation; all physical cores by default."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document an answer."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", metavar="VIDEO_OR_IMAGE")
@click.argument("question")
@answering_options
def ask(bundle: Path, source: str, question: str, as_json: bool, **options: Any) -> None:
    """Answer a QUESTION about a video or picture.

    The answer streams to stdout; progress and remarks go to stderr.
    """
    with _watching(bundle, source, question, as_json, **options) as session:
        answer = _asked(session, question, as_json, options, history=())
    if not as_json:
        spent = sum(answer.timings_ms.values()) / 1000
        remark(
            f"{len(answer.frames)} frames, {answer.prompt_tokens} tokens read, "
            f"{len(answer.token_ids)} said, {spent:.1f} s"
        )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", metavar="VIDEO_OR_IMAGE")
@answering_options
def chat(bundle: Path, source: str, as_json: bool, **options: Any) -> None:
    """Ask several questions about one video; it is encoded once.

    One question a line. The conversation so far is part of each question; /clear forgets it. An empty
    line or Ctrl-D ends.
    """
    from llamavid.prompt import Turn

    history: list[Turn] = []
    with _watching(bundle, source, None, as_json, **options) as session:
        while question := _next_question():
            if question == "/clear":
                history.clear()
                continue
            try:
                answer = _asked(session, question, as_json, options, history)
            except LlamaVidError as error:
                if not sys.stdin.isatty():
                    raise
                error_line(str(error))
                continue
            history.append(Turn(question, answer.text))


def _watching(
    bundle: Path,
    source: str,
    question: str | None,
    as_json: bool,
    *,
    fps: float,
    threads: int | None,
    **options: Any,
) -> VideoSession:
    """The session that has watched `source`. A mistake in the words is said before hours of encoding."""
    from llamavid.prompt import checked_question, find_template
    from llamavid.runtime.session import VideoSession
    from llamavid.sampling import Sampling

    Sampling(options["temperature"], options["top_p"], options["seed"])
    if options["template"]:
        find_template(options["template"])
    if question is not None:
        checked_question(question)
    session = VideoSession.open(bundle, threads=threads)
    if question is not None:
        session.check_question(question, truncate=options["truncate_question"])
    with Progress(quiet=as_json) as progress:
        watched = session.watch(
            source, fps=fps, on_frame=lambda done, total: progress.update("watching frames", done, total)
        )
    for note in watched.notes:
        remark(note)
    return session


def _asked(
    session: VideoSession, question: str, as_json: bool, options: dict[str, Any], history: Any
) -> Answer:
    from llamavid.sampling import Sampling

    with Progress(quiet=as_json) as progress:

        def on_text(text: str) -> None:
            progress.close()
            if not as_json:
                click.echo(printable(text), nl=False)

        answer = session.ask(
            question,
            max_new_tokens=options["max_new_tokens"],
            sampling=Sampling(options["temperature"], options["top_p"], options["seed"]),
            template=options["template"],
            history=history,
            truncate_question=options["truncate_question"],
            on_text=on_text,
            on_prefill=lambda done, total: progress.update("reading tokens", done, total),
        )
    click.echo(json.dumps(_document(session, answer)) if as_json else "")
    return answer


def _document(session: VideoSession, answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "frames": [{"index": frame.index, "pts_seconds": frame.pts_seconds} for frame in answer.frames],
        "timings_ms": answer.timings_ms,
        "notes": list(session.watched.notes) if session.watched else [],
        "bundle": {"path": str(session.bundle.folder), "digest": session.bundle.digest},
    }


def _next_question() -> str:
    if sys.stdin.isatty():
        click.secho("> ", nl=False, err=True, bold=True)
    try:
        return sys.stdin.readline().strip()
    except UnicodeDecodeError as error:
        raise PromptError(
            "the question is not UTF-8 text", next_step="Check the input's encoding."
        ) from error


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "bundle", required=True, type=click.Path(path_type=Path), help="The bundle to make."
)
@click.option("--vision-tower", help="The EVA file, instead of the one config.json names.")
@click.option(
    "--text-tokenizer", help="BERT's folder or vocab.txt, instead of bert-base-uncased near the checkpoint."
)
@click.option("--image-processor", help="Its folder, or an image size in pixels, instead of config.json's.")
@click.option("--precision", default="fp32", show_default=True, help="Of the frame graphs: fp32 or fp16.")
@click.option(
    "--llm-precision", default="fp32", show_default=True, help="Of the language model: fp32, fp16 or int4."
)
@click.option(
    "--int4-block", default=32, show_default=True, help="Weights that share a scale: 32, 64 or 128."
)
@click.option("--template", default="vicuna_v1", show_default=True, help="The bundle's prompt template.")
@click.option("--replace", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the table of errors as one JSON document.")
def export(
    checkpoint: Path,
    bundle: Path,
    vision_tower: str | None,
    text_tokenizer: str | None,
    image_processor: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn a CHECKPOINT in its release layout into a bundle.

    Every graph is compared with the PyTorch model; one that differs by more than its tolerance fails the
    export (exit 1) and leaves no bundle.
    """
    _require_extra("export", "torch", "transformers", "onnx", "safetensors")
    from dataclasses import asdict

    from llamavid.export.pack import ExportOptions, export_bundle
    from llamavid.export.verify import Runner
    from llamavid.model.checkpoint import open_checkpoint
    from llamavid.runtime.parity import run_graph, run_language

    settings = ExportOptions(**options)
    opened = open_checkpoint(
        checkpoint, vision_tower=vision_tower, text_tokenizer=text_tokenizer, image_processor=image_processor
    )
    remark(
        "LLaMA-VID's published weights are CC BY-NC 4.0: a bundle made of them may not be used commercially."
    )
    for name in opened.unexpected:
        remark(f"unexpected tensor {name} is left out")
    remark(f"{len(opened.tensors)} tensors; {len(opened.dropped)} known and not needed")
    with Progress(quiet=as_json) as progress:
        manifest = export_bundle(
            opened,
            bundle,
            runner=Runner(run_graph, run_language),
            options=settings,
            on_progress=progress.update,
            on_row=lambda row: None if as_json else _print_row(progress, row),
        )
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "parity": [asdict(row) for row in manifest.parity]}))
    else:
        size = sum(entry.size for entry in manifest.files.values())
        click.echo(
            f'{bundle}: {size / 1e6:,.1f} MB. Next: llamavid ask {shlex.quote(str(bundle))} VIDEO "question"'
        )


def _print_row(progress: Progress, row: Any) -> None:
    progress.close()
    bound = f"<= {row.tolerance:.0e}" if row.tolerance else "not judged"
    verdict = click.style("ok  ", fg="green") if row.passed else click.style("FAIL", fg="red")
    figures = f"{row.graph:8} {row.precision:5} {row.norm_error:9.2e} {bound:10}"
    click.echo(f"{verdict} {figures}  {row.against}: {row.reason}")


@main.command()
@click.argument("stage", type=click.Choice(["stage1", "stage2", "stage3"]))
@click.option("--config", type=click.Path(path_type=Path), help="A JSON object of settings.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="One setting; replaces the file's.")
def train(stage: str, config: Path | None, pairs: tuple[str, ...]) -> None:
    """Run one of the three training STAGEs, or continue it.

    \b
    llamavid train stage1 --set checkpoint=START --set data=captions.json --set output=stage1
    llamavid train stage2 --set checkpoint=stage1/checkpoint --set data=instructions.json --set output=stage2

    An interrupted run continues where it was saved last when it is started again. Any field of a stage can
    be set: batch_size, learning_rate, epochs, max_tokens.
    """
    _require_extra("train", "torch", "transformers", "accelerate", "matplotlib")
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
    with Progress() as progress:
        outcome = run_stage(
            run.stage,
            opened,
            run.paths.data,
            run.settings,
            features=FrameFeatures(cache, read),
            on_step=lambda at: progress.update(f"{stage}, loss {at.loss:.3f}", at.step, at.steps),
        )
    click.echo(f"{outcome}. Next: llamavid export {shlex.quote(str(outcome))} -o BUNDLE")


@main.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Say what this machine can run, and what BUNDLE needs of it."""
    from llamavid.runtime.doctor import examine

    findings = examine(bundle)
    if as_json:
        click.echo(json.dumps([finding.__dict__ for finding in findings]))
        return
    for finding in findings:
        mark = click.style("ok", fg="green") if finding.ok else click.style("--", fg="yellow")
        click.echo(f"{mark} {finding.subject:18} {finding.text}")


def _require_extra(extra: str, *packages: str) -> None:
    from importlib.util import find_spec

    from llamavid.errors import DeviceError

    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        raise DeviceError(
            f"{', '.join(absent)} not installed", next_step=f'Run: pip install "llamavid[{extra}]".'
        )
