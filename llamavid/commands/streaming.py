"""stream: standing questions about a camera, a network stream or a file, answered as time goes on."""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamavid.commands.bundle_argument import bundle_then, chosen_bundle
from llamavid.commands.device_options import device_options
from llamavid.commands.quantities import ByteSize, Duration
from llamavid.console import printable, remark

if TYPE_CHECKING:
    from llamavid.runtime.following import Following
    from llamavid.runtime.live.source import SourceEvent
    from llamavid.runtime.standing import StandingAnswer


@click.command()
@bundle_then(source="SOURCE")
@click.option("--ask", "questions", multiple=True, required=True, help="A standing question; several may be.")
@click.option(
    "--every", type=Duration(), default="5s", show_default=True, help="Of the stream's time, between answers."
)
@click.option(
    "--window", type=Duration(), help="What an answer is about: the last 10m, or as much as fits the model."
)
@click.option("--fps", default=1.0, show_default=True, help="Frames a second to look at.")
@click.option(
    "--stall",
    type=Duration(),
    default="10s",
    show_default=True,
    help="Connect again to a camera or address that gives no picture for so long.",
)
@click.option(
    "--for", "stop_after", type=Duration(), default=math.inf, help="Stop after so much of the stream's time."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=64, show_default=True, help="The longest answer."
)
@click.option("--memory", type=ByteSize(), help="What the process may hold, such as 2G.")
@click.option("--threads", type=click.IntRange(1), help="Of one operation; all physical cores by default.")
@device_options
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON lines: answers, the source's events, the end."
)
def stream(
    bundle: Path | None,
    source: str,
    questions: tuple[str, ...],
    every: float,
    window: float | None,
    fps: float,
    stall: float,
    stop_after: float,
    max_new_tokens: int,
    memory: float | None,
    threads: int | None,
    on: str | None,
    allow_cpu: bool,
    as_json: bool,
) -> None:
    """Answer standing questions about SOURCE while it goes on; Ctrl-C ends it.

    \b
    llamavid stream BUNDLE rtsp://camera/1 --ask "Is the door open?" --every 2s --window 10m
    llamavid stream BUNDLE camera:0 --ask "What is on the table?" --json
    llamavid stream BUNDLE clip.mp4 --ask "What happens?"

    SOURCE is a file, a folder of pictures, a camera, an address, a pipeline or - for stdin. Every frame is
    encoded once for all questions. Times are the stream's own. Without BUNDLE the embedded model answers.
    """
    from llamavid.bundle import open_bundle
    from llamavid.runtime.following import Following
    from llamavid.runtime.live.link import LiveLimits
    from llamavid.runtime.live.opening import open_stream_source
    from llamavid.runtime.stream_session import StreamSession

    say = _Lines() if as_json else _Text(several=len(questions) > 1)
    with StreamSession(
        open_bundle(chosen_bundle(bundle)),
        questions,
        fps=fps,
        window_seconds=window,
        max_new_tokens=max_new_tokens,
        memory_bytes=int(memory) if memory else None,
        threads=threads,
        on=on,
        allow_cpu=allow_cpu,
    ) as session:
        limits = LiveLimits(stall_seconds=stall)
        opened = open_stream_source(source, fps=fps, limits=limits, on_event=say.event)
        following = Following(session, opened, every_seconds=every, until_seconds=stop_after, fps=fps)
        with _stopped_by_signals(following):
            for answer in following.answers():
                say.answer(answer)
        say.end(following)


class _Text:
    """Answers on stdout, the rest on stderr."""

    def __init__(self, *, several: bool) -> None:
        self._several = several

    def answer(self, answer: StandingAnswer) -> None:
        asked = f"{answer.question} " if self._several else ""
        click.echo(printable(f"{_at(answer.last.pts_seconds)} {asked}{answer.text}"))

    def event(self, event: SourceEvent) -> None:
        remark(f"{_at(event.at_seconds)} {event.text}")

    def end(self, following: Following) -> None:
        for note in following.notes:
            remark(note)
        counters = following.counters()
        remark(
            f"{counters.answers} answers, {counters.skipped} skipped; {counters.frames_encoded} frames "
            f"encoded, {counters.stream['dropped']} dropped because they came too fast"
        )


class _Lines:
    """One JSON document a line on stdout. Events come from the thread that reads the source."""

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def answer(self, answer: StandingAnswer) -> None:
        self._line(
            event="answer",
            pts_seconds=answer.last.pts_seconds,
            question=answer.question,
            answer=answer.text,
            window={
                "first": asdict(answer.first),
                "last": asdict(answer.last),
                "frames": answer.frames,
            },
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            first_token_ms=round(answer.first_token_ms, 3),
            total_ms=round(answer.total_ms, 3),
        )

    def event(self, event: SourceEvent) -> None:
        self._line(event="source", pts_seconds=event.at_seconds, kind=event.kind.value, text=event.text)

    def end(self, following: Following) -> None:
        self._line(event="end", **asdict(following.counters()), notes=following.notes)

    def _line(self, **document: Any) -> None:
        with self._turn:
            click.echo(json.dumps(document))


def _at(seconds: float) -> str:
    from llamavid.runtime.evidence import clock

    return f"[{clock(seconds)}]"


@contextmanager
def _stopped_by_signals(following: Following) -> Iterator[None]:
    """The first Ctrl-C, or a service's SIGTERM, ends the stream with its last answer; the second at once."""

    def stop(number: int, frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler)
        threading.Thread(target=following.stop, daemon=True).start()  # it may take a lock that is held here

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
