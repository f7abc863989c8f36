"""eval: a data set in, accuracy by kind or predictions out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from llamavid.commands.bundle_argument import bundle_then, chosen_bundle
from llamavid.commands.device_options import device_options
from llamavid.console import Progress, printable, remark


@click.command("eval")
@bundle_then(data="DATA.json")
@click.option(
    "--media",
    "--video-dir",
    type=click.Path(path_type=Path),
    help="The videos' folder; DATA's own by default.",
)
@click.option("--answers", type=click.Path(path_type=Path), help="The right answers, where DATA has none.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Every answer, as JSON Lines.")
@click.option("--blind", is_flag=True, help="Show grey frames in the place of the videos'.")
@click.option("--limit", type=click.IntRange(1), help="The first so many questions only.")
@click.option("--fps", default=1.0, show_default=True, help="Frames a second to look at.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="The longest answer."
)
@click.option("--template", help="vicuna_v1, imgsp_v1 or llava_v1; the bundle's own when left out.")
@click.option("--threads", type=click.IntRange(1), help="Of one operation; all physical cores by default.")
@device_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def evaluate(
    bundle: Path | None,
    data: str,
    media: Path | None,
    answers: Path | None,
    output: Path | None,
    limit: int | None,
    threads: int | None,
    on: str | None,
    allow_cpu: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask all questions of DATA.json and say how many answers are right.

    \b
    llamavid eval BUNDLE questions.json -o answers.jsonl
    llamavid eval BUNDLE test_q.json --answers test_a.json --media videos -o predictions.jsonl

    DATA.json is LLaVA JSON, of which each kind gets its accuracy and 95 % confidence interval; or it is
    open-ended (MSVD-QA, MSRVTT-QA, ActivityNet-QA), and OUTPUT is what a judge reads. The same command
    continues an interrupted run. Exit code 1 when more than 1 % of the items are broken. Without BUNDLE
    the embedded tiny model answers.
    """
    from dataclasses import asdict

    from llamavid.errors import SourceError, UsageError
    from llamavid.runtime.evaluate import Settings, scores
    from llamavid.runtime.evaluate import evaluate as ask_all
    from llamavid.runtime.qa_layouts import read_data_set
    from llamavid.runtime.session import VideoSession

    settings = Settings(**options)
    questions = read_data_set(Path(data), media=media, answers=answers, limit=limit)
    if not (questions.scored or output):
        raise UsageError("open-ended answers need a file", next_step="Name it: -o PREDICTIONS.jsonl.")
    with (
        VideoSession.open(chosen_bundle(bundle), threads=threads, on=on, allow_cpu=allow_cpu) as session,
        Progress(quiet=as_json) as progress,
    ):
        outcome = ask_all(
            session,
            questions,
            settings,
            output=output,
            on_progress=lambda done, total: progress.update("asking questions", done, total),
            on_broken=lambda item: remark(f"broken: {item.name}: {item.reason}"),
        )
    found = scores(outcome.records) if questions.scored else None
    if as_json:
        document = {
            "bundle": {"path": str(session.bundle.folder), "digest": session.bundle.digest},
            "data": {"path": data, "digest": questions.digest},
            "settings": asdict(settings),
            "answered": len(outcome.records),
            "scores": asdict(found) if found else None,
            "broken": [asdict(item) for item in outcome.broken],
            "output": str(output) if output else None,
        }
        click.echo(json.dumps(document))
    else:
        if found:
            _print_scores(found)
        if output:
            click.echo(f"{output}: {len(outcome.records)} answers.")
    if outcome.too_broken:
        total = len(outcome.records) + len(outcome.broken)
        raise SourceError(
            f"{len(outcome.broken)} of {total} items are broken",
            expected="at most 1 %",
            next_step="Correct what is named above.",
        )


def _print_scores(found: Any) -> None:
    rows = {**found.kinds, "total": found.total}
    if found.unseen_pairs:
        rows["of these, unseen pairs"] = found.unseen_pairs
    width = max(map(len, rows))
    click.echo(f"{'kind':{width}} {'n':>6} {'right':>6} {'accuracy':>9}  95 % interval")
    for name, row in rows.items():
        figures = f"{row.questions:6} {row.right:6} {row.accuracy:9.1%}  {row.low:.1%} to {row.high:.1%}"
        click.echo(printable(f"{name:{width}} {figures}"))
