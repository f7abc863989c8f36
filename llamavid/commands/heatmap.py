"""heatmap: what a question looks at in a video, drawn over its frames."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamavid.commands.bundle_argument import bundle_then, chosen_bundle
from llamavid.commands.device_options import device_options
from llamavid.console import Progress, remark
from llamavid.errors import UsageError

if TYPE_CHECKING:
    from llamavid.runtime.evidence import Evidence
    from llamavid.runtime.session import VideoSession

FRAMES, MOST_FRAMES = 6, 24


class Clock(click.ParamType):
    """Seconds, as 12.5, 1:03 or 1:02:03."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not re.fullmatch(r"(\d{1,6}:)?(\d{1,6}:)?\d{1,9}(\.\d*)?", str(value), re.ASCII):
            self.fail(f"{value!r}; expected seconds or a clock: 12.5, 1:03 or 1:02:03.", param, ctx)
        seconds = 0.0
        for part in str(value).split(":"):
            seconds = 60 * seconds + float(part)
        return seconds


@click.command()
@bundle_then(source="VIDEO_OR_IMAGE", question="QUESTION")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="heatmap.png",
    show_default=True,
    help="The PNG.",
)
@click.option(
    "--frames",
    type=click.IntRange(1, MOST_FRAMES),
    help=f"How many of the most relevant frames to draw; {FRAMES} by default.",
)
@click.option(
    "--at", "times", type=Clock(), multiple=True, help="Draw the frame nearest to this time; may be repeated."
)
@click.option("--fps", default=1.0, show_default=True, help="Frames a second to look at.")
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def heatmap(
    bundle: Path | None,
    source: str,
    question: str,
    output: Path,
    frames: int | None,
    times: tuple[float, ...],
    fps: float,
    on: str | None,
    allow_cpu: bool,
    as_json: bool,
) -> None:
    """Draw what a QUESTION looks at in a video or picture: the paper's Figure 6, as a PNG.

    Each frame has the context attention over it. It is attention, not proof: where the question looked need
    not be why the model answers what it does. The question is not answered. Without BUNDLE the embedded tiny
    model looks.
    """
    from llamavid.prompt import checked_question
    from llamavid.runtime.evidence import require_evidence
    from llamavid.runtime.heatmap import check_replaceable, drawing, shown_frames, write_png
    from llamavid.runtime.session import VideoSession
    from llamavid.runtime.video.sources import open_source

    _check_choice(frames, times)
    checked_question(question)
    check_replaceable(output)
    with VideoSession.open(chosen_bundle(bundle), on=on, allow_cpu=allow_cpu) as session:
        require_evidence(session.bundle)
        session.check_question(question)
        output.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is said at once
        with Progress(quiet=as_json) as progress:
            watched = session.watch(
                source, fps=fps, on_frame=lambda done, total: progress.update("watching frames", done, total)
            )
            evidence = session.look(question)
            places = _places(evidence, frames or FRAMES, times, fps)
            with open_source(source, fps=fps) as again:
                shown = shown_frames(again, evidence, places, session.config.preprocessing)
        write_png(drawing(shown, title=question), output)
        for note in watched.notes:
            remark(note)
        if as_json:
            click.echo(json.dumps(_document(session, evidence, places, question, output)))
        else:
            plural = "s" if len(evidence.frames) > 1 else ""
            drawn = f"{len(shown)} of {len(evidence.frames)} frame{plural}"
            click.echo(f"{output}: {drawn}. Attention, not proof.")


def _check_choice(frames: int | None, times: tuple[float, ...]) -> None:
    if frames is not None and times:
        raise UsageError("both --frames and --at", expected="one of them")
    if len(times) > MOST_FRAMES:
        raise UsageError(f"--at {len(times)} times", expected=f"at most {MOST_FRAMES}")


def _places(evidence: Evidence, count: int, times: tuple[float, ...], fps: float) -> list[int]:
    """In time order: the most relevant frames, or those nearest to `times`.

    Raises:
        UsageError: a time is after the end.
    """
    from llamavid.runtime.evidence import clock

    if not times:
        return sorted(evidence.top(count))
    shown_at = [frame.pts_seconds for frame in evidence.frames]
    for at in times:
        if at > shown_at[-1] + 1 / fps:
            raise UsageError(
                f"--at {clock(at)} is after the last frame", expected=f"at most {clock(shown_at[-1])}"
            )
    return sorted({min(range(len(shown_at)), key=lambda i: abs(shown_at[i] - at)) for at in times})


def _document(
    session: VideoSession, evidence: Evidence, places: list[int], question: str, output: Path
) -> dict[str, Any]:
    told = evidence.document()
    return {
        "picture": str(output),
        "question": question,
        "note": told["note"],
        "frames": [told["frames"][at] for at in places],
        "notes": list(session.watched.notes) if session.watched else [],
        "bundle": {"path": str(session.bundle.folder), "digest": session.bundle.digest},
    }
