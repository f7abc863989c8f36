"""features: a long video encoded once, with its subtitles, into a file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from llamavid.commands.bundle_argument import bundle_then, chosen_bundle
from llamavid.console import Progress, remark


@click.command()
@bundle_then(video="VIDEO")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="VIDEO's name with .safetensors by default."
)
@click.option("--subtitles", type=click.Path(path_type=Path), help="What is said in it: SRT or WebVTT.")
@click.option("--fps", default=1.0, show_default=True, help="Frames a second to look at.")
@click.option("--keep-class-token", is_flag=True, help="Store it too; the published movie files do not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def features(
    bundle: Path | None,
    video: str,
    output: Path | None,
    subtitles: Path | None,
    fps: float,
    keep_class_token: bool,
    as_json: bool,
) -> None:
    """Encode a long VIDEO once, with its subtitles, into a file that `ask` answers about.

    \b
    llamavid features BUNDLE movie.mp4 --subtitles movie.srt
    llamavid ask BUNDLE movie.safetensors "question"

    Without BUNDLE the embedded tiny model encodes.
    """
    from llamavid.bundle import open_bundle
    from llamavid.runtime.features.stored import store_features
    from llamavid.subtitles import read_subtitles

    said = read_subtitles(subtitles) if subtitles else []
    output = output or Path(video).parent / f"{Path(video).stem}.safetensors"
    opened = open_bundle(chosen_bundle(bundle))
    with Progress(quiet=as_json) as progress:
        stored, notes = store_features(
            opened,
            video,
            output,
            subtitles=said,
            fps=fps,
            keep_class_token=keep_class_token,
            on_frame=lambda done, total: progress.update("encoding frames", done, total),
        )
    for note in notes:
        remark(note)
    frames, rows, width = stored.features.shape
    if as_json:
        document = {
            "features": str(output),
            "shape": [frames, rows, width],
            "pts_seconds": stored.pts_seconds,
            "subtitles": len(said),
            "bundle": {"path": str(opened.folder), "digest": stored.bundle_digest},
            "notes": notes,
        }
        click.echo(json.dumps(document))
    else:
        again = shlex.join(["llamavid", "ask", *([str(bundle)] if bundle else []), str(output)])
        size = f"{output.stat().st_size / 1e6:,.1f} MB"
        click.echo(f'{output}: {frames} frames, {size}. Next: {again} "question"')
