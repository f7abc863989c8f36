"""A profile for people: tables on stdout, the paper's figures beside ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from llamavid.console import printable
from llamavid.runtime.profile.document import STAGE_WORDS

if TYPE_CHECKING:
    from llamavid.runtime.profile.comparing import Comparison
    from llamavid.runtime.profile.document import Profile, Reached
    from llamavid.runtime.profile.figures import Figure

# Table 9 of the paper: milliseconds a frame, one A100, 224 px, average over 100 videos. Its total counts
# neither decoding nor pixels.
PAPER: dict[str, dict[str, float]] = {
    "Q-Former": {"encoder": 4.87, "content": 0.01, "decoder": 1.08, "context": 0.02, "total": 5.98},
    "BERT": {"encoder": 4.89, "content": 0.01, "decoder": 0.25, "context": 0.02, "total": 5.17},
}
_ROWS = ("encoder", "content", "text-free", "decoder", "context", "text-related", "total")
_NAME, _CELL = 13, 28
_WIDE = "!"  # behind a figure whose rounds lie far apart


def print_profile(profile: Profile) -> None:
    for part in (_conditions, _frames, _video, _rest, _reached, _projected):
        for line in part(profile):
            click.echo(line)
        click.echo()


def _conditions(profile: Profile) -> Iterable[str]:
    conditions = profile.conditions
    for name, text in conditions.alike.items():
        yield f"{name:{_NAME}} {text}"
    told = "; ".join(f"{name} {text}" for name, text in conditions.told.items())
    yield f"{'also':{_NAME}} {told}"
    for graph, text in conditions.parity.items():
        yield f"{'parity':{_NAME}} {graph}: {text}"
    for mark in conditions.marks:
        yield click.style(f"{'marked':{_NAME}} {printable(mark)}", fg="yellow")


def _frames(profile: Profile) -> Iterable[str]:
    yield _bold(
        f"ms a frame, median [10th .. 90th percentile of the rounds]; {_WIDE} where they lie far apart"
    )
    heads = [f"batch {each.batch}" for each in profile.frames]
    yield _row("", heads, "paper, A100: Q-Former, BERT")
    for row in _ROWS:
        cells = [_cell(each.modules[row]) for each in profile.frames]
        yield _row(row, cells, _in_paper(row))
    yield (
        f"text-free once a frame, text-related once a frame and question; decoder and context told apart "
        f"by {profile.frames[0].split}"
    )


def _video(profile: Profile) -> Iterable[str]:
    """What comes before the graphs: the paper's total counts none of it."""
    video = profile.video
    yield _bold(f"from the file, ms: {video.name}, {video.size}")
    yield _row("decode", [_cell(video.decode)], "a frame to be looked at, and those passed over before it")
    yield _row("pixels", [_cell(video.pixels)], "a frame")
    yield _row("opening", [_cell(video.open)], "a file, to its first frame")


def _in_paper(row: str) -> str:
    parts = {"text-free": ("encoder", "content"), "text-related": ("decoder", "context")}.get(row, (row,))
    return ", ".join(f"{sum(figures[part] for part in parts):.2f}" for figures in PAPER.values())


def _rest(profile: Profile) -> Iterable[str]:
    language, asked = profile.language, profile.questions
    yield _bold("language model")
    yield _row(
        "prefill",
        [_cell(language.prefill)],
        f"{language.prompt_tokens} tokens, {language.prefill_tokens_a_second:,.0f} tokens/s",
    )
    yield _row(
        "a token",
        [_cell(language.decode)],
        f"after {language.prompt_tokens} to "
        f"{language.prompt_tokens + language.new_tokens}, {language.decode_tokens_a_second:,.1f} tokens/s",
    )
    yield ""
    yield _bold(f"two questions about {asked.frames} frames, ms")
    yield _row("watch", [_cell(asked.watch)], "decode, pixels, encoder, content")
    yield _row("first", [_cell(asked.first)], _stages(asked.stages["first"]))
    yield _row("second", [_cell(asked.second)], _stages(asked.stages["second"]))
    yield _row("first token", [_cell(asked.first_token)], "of the second question")
    if asked.second.median:
        yield f"the second question took {asked.first.median / asked.second.median:.1f} times less"


def _stages(stages: dict[str, float]) -> str:
    return ", ".join(f"{STAGE_WORDS.get(name, name)} {_ms(spent)}" for name, spent in stages.items())


def _reached(profile: Profile) -> Iterable[str]:
    roof = profile.roofline
    rates = ", ".join(f"{name} {_si(rate)}OP/s" for name, rate in roof.products.items())
    yield _bold("roofline: operations of the plain computation against this machine's ceilings")
    yield f"ceilings {roof.origin}: {rates}, memory {_si(roof.bandwidth)}B/s"
    yield f"{'':{_NAME}} {'batch':>5} {'operations':>11} {'bytes':>9} {'floor':>10} {'measured':>10}  reached"
    for each in roof.reached:
        yield _reached_row(each)


def _reached_row(each: Reached) -> str:
    floor, share = ("-", "no ceiling of its type") if each.floor is None else (_ms(each.floor), "")
    if each.share is not None:
        share = f"{each.share:7.1%} of {each.bound}"
        if each.share > 1:
            share += ": rewrites need fewer operations, or the ceilings were measured under load"
    name = "a token" if each.module == "decode" else each.module
    return (
        f"{name:{_NAME}} {each.batch:5} {_si(each.operations):>10} {_si(each.bytes):>8}B {floor:>10} "
        f"{_ms(each.measured):>10}  {share}"
    )


def _projected(profile: Profile) -> Iterable[str]:
    yield _bold("projection, not measured: by published ceilings, at least .. at the share reached here, ms")
    yield f"{'':{_NAME}} {'a frame':>24} {'a token':>24}"
    projected = profile.roofline.projected
    for each in projected:
        frame = _range(each.frame_at_least, each.frame_at_this_share)
        token = _range(each.token_at_least, each.token_at_this_share)
        yield f"{each.device:{_NAME}} {frame:>24} {token:>24}"
    yield from (f"{each.device}'s ceilings: {each.origin}" for each in projected)


def _range(least: float | None, likely: float | None) -> str:
    if least is None:
        return "lacks the type"
    return f"{_ms(least)} .. {_ms(likely)}" if likely is not None else f"{_ms(least)} .."


# A comparison.


def print_comparison(comparison: Comparison, first: str, second: str) -> None:
    for what in comparison.unlike:
        click.secho(f"unlike: {printable(what)}", err=True, fg="yellow")
    for what in comparison.told:
        click.echo(f"differs: {printable(what)}")
    width = max((len(each.what) for each in comparison.ratios), default=0)
    cell = max(_CELL, len(first), len(second))
    click.echo(f"{'ms':{width}} {first:>{cell}} {second:>{cell}}  times as fast")
    for each in comparison.ratios:
        what = printable(each.what)
        times = "" if each.times is None else f"{each.times:6.2f}"
        doubt = f"  {each.doubt}" if each.doubt else ""
        click.echo(f"{what:{width}} {_cell(each.first):>{cell}} {_cell(each.second):>{cell}}  {times}{doubt}")


def comparison_document(comparison: Comparison) -> str:
    ratios = [
        {**asdict(each), "times": each.times, "is_clear": each.is_clear, "doubt": each.doubt}
        for each in comparison.ratios
    ]
    return json.dumps({"ratios": ratios, "unlike": comparison.unlike, "told": comparison.told})


# Words and numbers.


def _row(name: str, cells: Sequence[str], note: str) -> str:
    return f"{name:{_NAME}} " + " ".join(f"{cell:>{_CELL}}" for cell in cells) + f"   {note}"


def _cell(figure: Figure) -> str:
    if figure.rounds == 1:
        return f"{_ms(figure.median)} [one round]"
    wide = f" {_WIDE}" if figure.is_wide else ""
    return f"{_ms(figure.median)} [{_ms(figure.low)} .. {_ms(figure.high)}]{wide}"


def _ms(value: float) -> str:
    """Three digits that count, and no more zeros than that."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 or not value else "<0.001"


def _si(value: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} "


def _bold(text: str) -> str:
    return click.style(text, bold=True)
