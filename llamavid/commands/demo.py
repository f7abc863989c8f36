"""demo: the embedded tiny model is asked about its sample clip, and its answers are checked."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from llamavid.commands.bundle_argument import chosen_bundle
from llamavid.console import Progress, printable
from llamavid.embedded import sample_clip, sample_questions
from llamavid.errors import BundleError

if TYPE_CHECKING:
    from llamavid.runtime.session import VideoSession

LONGEST_ANSWER = 64  # tokens: captions of the little world have fewer


@dataclass(frozen=True)
class SampleAnswer:
    """What the model said, and whether that is what it should have."""

    question: str
    answer: str
    expected: str
    right: bool


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(as_json: bool) -> None:
    """Ask the embedded tiny model about its sample clip.

    Needs no other file and no network. Exit code 1 when an answer is not the right one.
    """
    from llamavid.runtime.session import VideoSession

    start = time.perf_counter()
    with VideoSession.open(chosen_bundle(None)) as session:
        clip = sample_clip()
        with Progress(quiet=as_json) as progress:
            session.watch(clip, on_frame=lambda done, total: progress.update("watching frames", done, total))
        answers = _asked(session, as_json)
    seconds = time.perf_counter() - start
    if as_json:
        document = {
            "bundle": {"path": str(session.bundle.folder), "digest": session.bundle.digest},
            "video": str(clip),
            "answers": [asdict(answer) for answer in answers],
            "seconds": seconds,
        }
        click.echo(json.dumps(document))
    else:
        again = f'llamavid ask {shlex.quote(str(clip))} "question"'
        right = sum(answer.right for answer in answers)
        click.echo(f"{right} of {len(answers)} right, {seconds:.1f} s. Next: {again}")
    _require_right(answers)


def _asked(session: VideoSession, as_json: bool) -> list[SampleAnswer]:
    """Every sample question's answer; each is printed as soon as it is there."""
    from llamavid.runtime.evaluate import is_right

    answers: list[SampleAnswer] = []
    for question, expected in sample_questions():
        text = session.ask(question, max_new_tokens=LONGEST_ANSWER).text.strip()
        answers.append(SampleAnswer(question, text, expected, is_right(text, expected)))
        if not as_json:
            _print(answers[-1])
    return answers


def _print(answer: SampleAnswer) -> None:
    verdict = ("ok", "green") if answer.right else (f"expected {answer.expected}", "red")
    click.echo(answer.question)
    click.echo(f"  {printable(answer.answer)}  {click.style(verdict[0], fg=verdict[1])}")


def _require_right(answers: Sequence[SampleAnswer]) -> None:
    wrong = [answer for answer in answers if not answer.right]
    if wrong:
        raise BundleError(
            f"the embedded tiny model answers {len(wrong)} of {len(answers)} sample questions wrong",
            next_step="Look at this machine with `llamavid doctor`, or install llamavid again.",
        )
