"""ask and chat: a video and questions in, answers out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamavid.commands.bundle_argument import bundle_then, chosen_bundle
from llamavid.commands.device_options import device_options
from llamavid.commands.quantities import ByteSize
from llamavid.console import Progress, error_line, printable, remark
from llamavid.errors import LlamaVidError, PromptError

if TYPE_CHECKING:
    from llamavid.runtime.session import Answer, VideoSession


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
        click.option(
            "--cache", is_flag=True, help="Keep the video's features; asked again, it is not encoded."
        ),
        click.option(
            "--cache-folder", type=click.Path(path_type=Path), help="Where; --cache in a folder of your own."
        ),
        click.option(
            "--cache-gb", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Its quota."
        ),
        click.option(
            "--memory",
            type=ByteSize(),
            help="What the process may hold, such as 2G; features beyond it lie on disk.",
        ),
        click.option(
            "--evidence", is_flag=True, help="Tell which frames the question looked at: attention, not proof."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document an answer."),
    ]
    command = device_options(command)
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@bundle_then(source="VIDEO_OR_IMAGE", question="QUESTION")
@answering_options
def ask(bundle: Path | None, source: str, question: str, as_json: bool, **options: Any) -> None:
    """Answer a QUESTION about a video or picture, or a movie's features with its subtitles.

    The answer streams to stdout; progress and remarks go to stderr. Without BUNDLE the embedded tiny model
    answers.
    """
    from llamavid.runtime.features.stored import adopt_stored

    with _opened(bundle, question, **options) as session:
        subtitles = adopt_stored(session, source)
        if subtitles is None:
            _watch(session, source, options, as_json)
        _remark_notes(session)
        answer = _asked(session, question, as_json, options, history=(), subtitles=subtitles)
    if not as_json:
        spent = sum(answer.timings_ms.values()) / 1000
        remark(
            f"{len(answer.frames)} frames, {answer.prompt_tokens} tokens read, "
            f"{len(answer.token_ids)} said, {spent:.1f} s"
        )


@click.command()
@bundle_then(source="VIDEO_OR_IMAGE")
@answering_options
def chat(bundle: Path | None, source: str, as_json: bool, **options: Any) -> None:
    """Ask several questions about one video; it is encoded once.

    One question a line. The conversation so far is part of each question; /clear forgets it. An empty
    line or Ctrl-D ends. Without BUNDLE the embedded tiny model answers.
    """
    from llamavid.prompt import Turn

    history: list[Turn] = []
    with _opened(bundle, None, **options) as session:
        _watch(session, source, options, as_json)
        _remark_notes(session)
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


def _opened(
    bundle: Path | None,
    question: str | None,
    *,
    threads: int | None,
    memory: float | None,
    on: str | None,
    allow_cpu: bool,
    **options: Any,
) -> VideoSession:
    """A session to watch with. A mistake in the words is said before hours of encoding."""
    from llamavid.prompt import checked_question, find_template
    from llamavid.runtime.evidence import require_evidence
    from llamavid.runtime.session import VideoSession
    from llamavid.sampling import Sampling

    Sampling(options["temperature"], options["top_p"], options["seed"])
    if options["template"]:
        find_template(options["template"])
    if question is not None:
        checked_question(question)
    session = VideoSession.open(
        chosen_bundle(bundle),
        threads=threads,
        memory_bytes=int(memory) if memory else None,
        on=on,
        allow_cpu=allow_cpu,
    )
    if options["evidence"]:
        require_evidence(session.bundle)
    if question is not None:
        session.check_question(question, truncate=options["truncate_question"])
    return session


def _watch(session: VideoSession, source: str, options: dict[str, Any], as_json: bool) -> None:
    from llamavid.runtime.features.cache import FeatureCache, default_folder
    from llamavid.runtime.features.stored import watch_cached

    with Progress(quiet=as_json) as progress:

        def on_frame(done: int, total: int | None) -> None:
            progress.update("watching frames", done, total)

        if options["cache"] or options["cache_folder"]:
            folder = options["cache_folder"] or default_folder()
            cache = FeatureCache(folder, quota_bytes=int(options["cache_gb"] * 1e9))
            watch_cached(session, source, cache, fps=options["fps"], on_frame=on_frame)
        else:
            session.watch(source, fps=options["fps"], on_frame=on_frame)


def _remark_notes(session: VideoSession) -> None:
    for note in session.watched.notes if session.watched else ():
        remark(note)


def _asked(
    session: VideoSession,
    question: str,
    as_json: bool,
    options: dict[str, Any],
    history: Any,
    subtitles: list[str] | None = None,
) -> Answer:
    """The answer, printed as it comes. With `subtitles`, one for each frame, it is about a movie."""
    from functools import partial

    from llamavid.sampling import Sampling

    say = (
        partial(session.ask, history=history, truncate_question=options["truncate_question"])
        if subtitles is None
        else partial(session.ask_movie, subtitles=subtitles)
    )

    with Progress(quiet=as_json) as progress:

        def on_text(text: str) -> None:
            progress.close()
            if not as_json:
                click.echo(printable(text), nl=False)

        answer = say(
            question,
            max_new_tokens=options["max_new_tokens"],
            sampling=Sampling(options["temperature"], options["top_p"], options["seed"]),
            template=options["template"],
            on_text=on_text,
            on_prefill=lambda done, total: progress.update("reading tokens", done, total),
            evidence=options["evidence"],
        )
    click.echo(json.dumps(_document(session, answer)) if as_json else "")
    if answer.evidence and not as_json:
        click.echo(answer.evidence.table())
    return answer


def _document(session: VideoSession, answer: Answer) -> dict[str, Any]:
    evidence = {"evidence": answer.evidence.document()} if answer.evidence else {}
    return {
        "answer": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "frames": [{"index": frame.index, "pts_seconds": frame.pts_seconds} for frame in answer.frames],
        "timings_ms": answer.timings_ms,
        "notes": list(session.watched.notes) if session.watched else [],
        "bundle": {"path": str(session.bundle.folder), "digest": session.bundle.digest},
        **evidence,
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
