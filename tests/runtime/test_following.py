"""Following a source: answers when they fall due, and nothing lost without being counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamavid.bundle import Bundle, open_bundle
from llamavid.errors import UsageError
from llamavid.runtime.following import WAITING_FRAMES, Following
from llamavid.runtime.live.opening import open_stream_source
from llamavid.runtime.live.push import PushSource
from llamavid.runtime.standing import StandingAnswer
from llamavid.runtime.stream_session import StreamSession
from tests.clips import drawn_frame, write_clip


@pytest.fixture(scope="module")
def bundle(short_bundle: Path) -> Bundle:
    return open_bundle(short_bundle)


@pytest.fixture
def session(bundle: Bundle) -> Iterator[StreamSession]:
    with StreamSession(bundle, ["What is happening?"], max_new_tokens=3) as session:
        yield session


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=300)


def moments(answers: list[StandingAnswer]) -> list[float]:
    return [answer.last.pts_seconds for answer in answers]


@pytest.mark.parametrize(
    ("every_seconds", "expected"),
    [(5, [5, 10, 11]), (2.5, [3, 5, 8, 10, 11]), (11, [11]), (100, [11]), (0.4, list(range(1, 12)))],
)
def test_a_file_is_answered_at_each_moment_and_once_more_at_its_end(
    session: StreamSession, clip: Path, every_seconds: float, expected: list[float]
) -> None:
    following = Following(session, open_stream_source(clip), every_seconds=every_seconds)
    assert moments(list(following.answers())) == expected
    counters = following.counters()
    assert (counters.frames_encoded, counters.answers) == (12, len(expected))
    assert counters.stream["dropped"] == 0


def test_a_stream_can_be_followed_for_a_time_however_seldom_it_is_answered(
    session: StreamSession, clip: Path
) -> None:
    following = Following(session, open_stream_source(clip), every_seconds=100, until_seconds=3.5)
    assert moments(list(following.answers())) == [4]


@pytest.mark.parametrize("is_live", [False, True])
def test_nothing_after_the_last_frame_is_seen_even_where_it_comes_with_it(
    session: StreamSession, is_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is slow, so that the other frames come in whole batches."""
    see = session.see
    monkeypatch.setattr(session, "see", lambda *new: (time.sleep(0.2), see(*new)))
    source = PushSource(capacity=WAITING_FRAMES, is_live=is_live)
    for at in range(WAITING_FRAMES):
        source.push(drawn_frame(at), float(at))
    source.end()
    following = Following(session, source, every_seconds=100, until_seconds=4.5)
    (answer,) = following.answers()
    assert answer.last.pts_seconds == 5
    assert following.counters().frames_encoded == 6


def test_what_falls_due_between_two_frames_is_answered_once_and_counted(
    session: StreamSession, clip: Path
) -> None:
    following = Following(session, open_stream_source(clip), every_seconds=0.4)
    list(following.answers())
    counters = following.counters()
    assert counters.answers + counters.skipped == int(11 / 0.4)


def test_a_live_source_is_not_kept_waiting_and_what_it_loses_is_counted(session: StreamSession) -> None:
    frames, source = 60, PushSource(capacity=60)
    following = Following(session, source, every_seconds=1)
    for at in range(frames):
        source.push(drawn_frame(at), float(at))
    source.end()
    answers = following.answers()
    first = next(answers)
    time.sleep(0.5)  # the model is slow to answer; the queue runs over
    rest = list(answers)
    counters = following.counters()
    seen, dropped = counters.frames_encoded, counters.stream["dropped"]
    assert seen + dropped == frames
    assert dropped >= frames - 2 * WAITING_FRAMES - 4
    assert rest[-1].last.pts_seconds == frames - 1  # the newest one is never dropped
    assert counters.answers == 1 + len(rest)
    assert counters.answers + counters.skipped == frames - 1 - first.first.index  # of the first one seen
    assert first.last.index < rest[0].last.index


def test_stopping_from_another_thread_ends_with_an_answer_about_what_was_seen(session: StreamSession) -> None:
    source = PushSource()
    following = Following(session, source, every_seconds=1000)
    source.push(drawn_frame(0), 0.0)
    source.push(drawn_frame(1), 1.0)
    threading.Timer(0.5, following.stop).start()
    (answer,) = following.answers()
    assert answer.frames == 2


def test_a_source_without_a_frame_ends_without_an_answer(session: StreamSession) -> None:
    source = PushSource()
    source.end()
    following = Following(session, source, every_seconds=1)
    assert list(following.answers()) == []
    assert following.counters().answers == 0


@pytest.mark.parametrize("every", [0, -1, 1e-320, float("nan")])
def test_answers_are_at_least_a_millisecond_apart(session: StreamSession, every: float) -> None:
    with pytest.raises(UsageError, match=r"expected at least 0\.001"):
        Following(session, PushSource(), every_seconds=every)
