"""features: a long video encoded once, with its subtitles, into a file."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from llamavid.console import Progress, remark


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("video")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="VIDEO's name with .safetensors by default."
)
@click.option("--subtitles", type=click.Path(path_type=Path), help="What is said in it: SRT or WebVTT.")
@click.option("--fps", default=1.0, show_default=True, help="Frames a second to look at.")
@click.option("--keep-class-token", is_flag=True, help="Store it too; the published movie files do not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def features(
    bundle: Path,
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
    """
    from llamavid.bundle import open_bundle
    from llamavid.runtime.stored_features import store_features
    from llamavid.subtitles import read_subtitles

    said = read_subtitles(subtitles) if subtitles else []
    output = output or Path(video).parent / f"{Path(video).stem}.safetensors"
    with Progress(quiet=as_json) as progress:
        stored, notes = store_features(
            open_bundle(bundle),
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
            "bundle": {"path": str(bundle), "digest": stored.bundle_digest},
            "notes": notes,
        }
        click.echo(json.dumps(document))
    else:
        again = f'llamavid ask {shlex.quote(str(bundle))} {shlex.quote(str(output))} "question"'
        click.echo(f"{output}: {frames} frames, {output.stat().st_size / 1e6:,.1f} MB. Next: {again}")
