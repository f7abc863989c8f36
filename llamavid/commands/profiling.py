"""profile: how fast is this bundle here, module by module, and how fast could it be?

Two profiles are compared by `--compare`. What is measured, and how, is `llamavid.runtime.profile`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llamavid.commands.bundle_argument import chosen_bundle, is_bundle
from llamavid.commands.device_options import device_options
from llamavid.commands.extras import require_extra
from llamavid.console import Progress, printable, remark
from llamavid.errors import UsageError

_QUESTIONS = ("What is happening in the video?", "What happens at the end?")
_LARGEST_BATCH = 1024


class Batches(click.ParamType):
    """`1,8,32` -> (1, 8, 32)."""

    name = "n,n,..."

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):  # a default
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and len(part) < 5 and 1 <= int(part) <= _LARGEST_BATCH for part in parts):
            self.fail(f"{value!r} is no list like 1,8,32, up to {_LARGEST_BATCH}", parameter, context)
        return tuple(sorted({int(part) for part in parts}))


@click.command()
@click.argument("words", nargs=-1, metavar="[BUNDLE] [VIDEO]...")
@click.option("--frames", type=click.IntRange(1), default=100, show_default=True, help="To be looked at.")
@click.option(
    "--batch", "batches", type=Batches(), default=(1, 8, 32), help="Frames a run.  [default: 1,8,32]"
)
@click.option(
    "--new-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of an answer, at most."
)
@click.option("--question", "questions", multiple=True, help="Two of them, instead of ours.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=20.0, show_default=True, help="For each figure, about."
)
@click.option("--threads", type=click.IntRange(1), help="Of one operation; all physical cores by default.")
@click.option("--plot", type=click.Path(path_type=Path), help="A PNG: modules, their floors, the roofline.")
@click.option(
    "--compare",
    "pair",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="A.json B.json",
    help="Measure nothing; ratios of two profiles.",
)
@click.option("--unlike", is_flag=True, help="Compare profiles that were not made alike, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@device_options
def profile(
    words: tuple[str, ...],
    pair: tuple[Path, Path] | None,
    unlike: bool,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure BUNDLE here: Table 9 of the paper, the language model, two questions, and their floors.

    Without BUNDLE the embedded tiny model is measured, without VIDEO on the sample clip. A bundle or engine
    that was never compared with the model is refused: run `llamavid verify` first.
    """
    if pair:
        if words or plot:
            raise UsageError("--compare with a BUNDLE, VIDEO or --plot", expected="two profiles alone")
        _compare(pair, unlike, as_json)
        return
    if unlike:
        raise UsageError("--unlike without --compare", expected="--compare A.json B.json --unlike")
    if plot:  # before minutes of measuring
        require_extra("plot", "matplotlib")
        if not plot.absolute().parent.is_dir():
            raise UsageError(
                f"--plot {plot}: {plot.parent} is no folder",
                expected="a file to write",
                next_step="Make the folder, or choose another.",
            )
    made = _measured(words, quiet=as_json, **options)
    for note in made.notes:
        remark(note)
    if as_json:
        click.echo(made.to_json())
        for mark in made.conditions.marks:
            click.secho(f"marked: {mark}", err=True, fg="yellow")
    else:
        from llamavid.commands.profile_table import print_profile

        print_profile(made)
    if plot:
        from llamavid.commands.profile_plot import draw

        draw(made, plot)
        remark(f"{plot} is drawn.")


def _measured(
    words: tuple[str, ...],
    *,
    frames: int,
    batches: tuple[int, ...],
    new_tokens: int,
    questions: tuple[str, ...],
    seconds: float,
    threads: int | None,
    on: str | None,
    allow_cpu: bool,
    quiet: bool,
) -> Any:
    from llamavid.bundle import open_bundle
    from llamavid.embedded import sample_clip
    from llamavid.runtime.profile.profile import Wanted, profile_bundle

    if len(questions) not in (0, 2):
        raise UsageError(
            f"{len(questions)} --question", expected="two: the second is asked of a watched video"
        )
    bundle_given = bool(words) and is_bundle(words[0])
    videos = tuple(Path(word) for word in words[bundle_given:])
    bundle = open_bundle(chosen_bundle(Path(words[0]) if bundle_given else None))
    if not videos:
        remark(
            "No VIDEO: the embedded sample clip is looked at. Decoding and pixels are a tiny video's; "
            "the other figures do not depend on what is seen."
        )
    wanted = Wanted(
        videos or (sample_clip(),), questions or _QUESTIONS, frames, batches, new_tokens, seconds, threads
    )
    with Progress(quiet=quiet) as progress:
        return profile_bundle(bundle, wanted, on=on, allow_cpu=allow_cpu, tell=progress.update)


def _compare(pair: tuple[Path, Path], unlike: bool, as_json: bool) -> None:
    from llamavid.commands.profile_table import comparison_document, print_comparison
    from llamavid.runtime.profile.comparing import compare
    from llamavid.runtime.profile.document import read_profile

    first, second = (read_profile(file) for file in pair)
    comparison = compare(first, second, unlike=unlike)
    for name, each in zip(pair, (first, second), strict=True):
        for mark in each.conditions.marks:
            click.secho(f"marked: {name.name}: {printable(mark)}", err=True, fg="yellow")
    if as_json:
        click.echo(comparison_document(comparison))
    else:
        print_comparison(comparison, pair[0].name, pair[1].name)
