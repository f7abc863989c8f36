"""The command line: gathers the commands and turns a user's mistake into one line.

Heavy imports are inside the commands, so that `llamavid --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from llamavid import __version__
from llamavid.commands.answering import ask, chat
from llamavid.commands.building import build
from llamavid.commands.building_llm import build_llm
from llamavid.commands.calibrating import calibrate
from llamavid.commands.demo import demo
from llamavid.commands.evaluating import evaluate
from llamavid.commands.heatmap import heatmap
from llamavid.commands.long_video import features
from llamavid.commands.making import export, train
from llamavid.commands.profiling import profile
from llamavid.commands.streaming import stream
from llamavid.commands.verifying import verify
from llamavid.console import error_line, remark
from llamavid.embedded import default_bundle
from llamavid.errors import BundleError, LlamaVidError


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
    llamavid demo                             the embedded tiny model answers about a clip of its little world
    llamavid export CHECKPOINT -o BUNDLE      a checkpoint becomes a bundle
    llamavid calibrate CHECKPOINT CLIPS -o C  fewer bits, chosen on clips: export --scales C/scales.json
    llamavid build BUNDLE --target this       its graphs become TensorRT engines
    llamavid ask BUNDLE clip.mp4 "question"   the bundle answers
    llamavid stream BUNDLE camera:0 --ask "?" the bundle answers again and again
    """


@main.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Say what this machine can run, and what BUNDLE needs of it; without BUNDLE, the embedded one."""
    from llamavid.runtime.doctor import Finding, examine

    try:
        subject = bundle or default_bundle()
    except BundleError as error:
        findings = [*examine(), Finding("embedded bundle", False, str(error))]
    else:
        findings = examine(subject)
    if as_json:
        click.echo(json.dumps([finding.__dict__ for finding in findings]))
        return
    for finding in findings:
        mark = click.style("ok", fg="green") if finding.ok else click.style("--", fg="yellow")
        click.echo(f"{mark} {finding.subject:18} {finding.text}")


COMMANDS = (
    ask,
    build,
    build_llm,
    calibrate,
    chat,
    demo,
    evaluate,
    export,
    features,
    heatmap,
    profile,
    stream,
    train,
    verify,
)
for command in COMMANDS:
    main.add_command(command)
