"""Standing questions: the answers of a fresh session about the same frames, for the price of the new ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llamavid.bundle import Bundle, open_bundle
from llamavid.errors import BundleError, DeviceError, PromptError, UsageError
from llamavid.runtime import stream_session
from llamavid.runtime.pixels import pixels_from_rgb
from llamavid.runtime.session import VideoSession
from llamavid.runtime.standing import StandingAnswer
from llamavid.runtime.stream_session import StreamSession
from llamavid.runtime.video.frames import FrameTime
from tests.clips import drawn_frame
from tests.runtime.test_session import changed

QUESTIONS = ("What is happening?", "Is there a bicycle, and who rides it?")
TOKENS = 6


@pytest.fixture(scope="module")
def bundle(short_bundle: Path) -> Bundle:
    return open_bundle(short_bundle)


@pytest.fixture
def session(bundle: Bundle) -> Iterator[StreamSession]:
    with streaming(bundle) as session:
        yield session


def streaming(bundle: Bundle, *, window_seconds: float = 40.0, **options: object) -> StreamSession:
    return StreamSession(
        bundle,
        QUESTIONS,
        window_seconds=window_seconds,
        max_new_tokens=TOKENS,
        **options,  # type: ignore[arg-type]
    )


def pixels(bundle: Bundle, first: int, count: int) -> np.ndarray:
    pictures = np.stack([drawn_frame(at) for at in range(first, first + count)])
    return pixels_from_rgb(pictures, image_size=bundle.manifest.model.vision.image_size)


def times(first: int, count: int) -> list[FrameTime]:
    return [FrameTime(at, float(at)) for at in range(first, first + count)]


def show(session: StreamSession, first: int, count: int, *, at_once: int = 5) -> None:
    for start in range(first, first + count, at_once):
        few = min(at_once, first + count - start)
        session.see(pixels(session.bundle, start, few), times(start, few))


def fresh_answer(bundle: Bundle, answer: StandingAnswer) -> tuple[int, ...]:
    """What a session says that watches exactly the answer's window."""
    first, count = answer.first.index, answer.frames
    with VideoSession(bundle) as session:
        features = session._encoder.encode(pixels(bundle, first, count))[0]
        session.adopt(features, times(first, count))
        return session.ask(answer.question, max_new_tokens=TOKENS).token_ids


def test_an_answer_is_that_of_a_fresh_session_about_the_same_frames(
    bundle: Bundle, session: StreamSession
) -> None:
    for first, count in ((0, 3), (3, 1), (4, 36), (40, 7), (47, 30)):  # within the window, at its cap, beyond
        show(session, first, count)
        answers = list(session.answers())
        assert [answer.question for answer in answers] == list(QUESTIONS)
        for answer in answers:
            assert answer.last.index == first + count - 1
            assert answer.token_ids == fresh_answer(bundle, answer)
    assert session.frames_encoded == 77
    assert session.frames_read_again > 0


def test_a_question_asked_twice_says_the_same(session: StreamSession) -> None:
    show(session, 0, 9)
    once, again = list(session.answers()), list(session.answers())
    assert [answer.token_ids for answer in once] == [answer.token_ids for answer in again]


def test_a_listener_that_fails_leaves_the_question_as_it_was(session: StreamSession) -> None:
    """The question and what had been said stayed in the cache, before the next frames."""

    def fails(question: str, text: str) -> None:
        raise BrokenPipeError

    show(session, 0, 9)
    once = next(session.answers())
    with pytest.raises(BrokenPipeError):
        next(session.answers(on_text=fails))
    assert next(session.answers()).token_ids == once.token_ids


def test_an_answer_sees_at_most_the_window_and_three_quarters_of_it_or_more(session: StreamSession) -> None:
    show(session, 0, 41)
    for first in range(41, 120):
        show(session, first, 1)
        answer = next(session.answers())
        assert answer.last.index == first
        assert answer.last.pts_seconds - answer.first.pts_seconds <= 40
        assert 30 <= answer.frames <= 41
        assert answer.frames == answer.last.index - answer.first.index + 1


def test_what_lies_before_a_gap_longer_than_the_window_is_not_spoken_of(session: StreamSession) -> None:
    show(session, 0, 5)
    session.see(pixels(session.bundle, 9, 1), [FrameTime(9, 3600.0)])
    answer = next(session.answers())
    assert (answer.first, answer.frames) == (FrameTime(9, 3600.0), 1)


def test_reading_grows_by_the_new_frames_alone(session: StreamSession) -> None:
    show(session, 0, 33)
    before = next(session.answers()).prompt_tokens
    show(session, 33, 2)
    assert (
        next(session.answers()).prompt_tokens == before + 2 * session.bundle.manifest.model.tokens_per_frame
    )


def test_a_question_that_comes_later_sees_the_frames_that_are_remembered(bundle: Bundle) -> None:
    with streaming(bundle, remembers=True) as session:
        show(session, 0, 20)
        session.ask("Why?")
        late = list(session.answers())[-1]
        assert (late.question, late.first.index, late.frames) == ("Why?", 0, 20)
        assert late.token_ids == fresh_answer(bundle, late)
        assert session.frames_encoded == 20


def test_without_a_memory_it_sees_the_frames_that_come(session: StreamSession) -> None:
    show(session, 0, 20)
    session.ask("Why?")
    assert [answer.question for answer in session.answers()] == list(QUESTIONS)
    show(session, 20, 2)
    late = list(session.answers())[-1]
    assert (late.question, late.first.index, late.frames) == ("Why?", 20, 2)


def test_held_features_stay_within_their_budget(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = bundle.manifest.model.vision
    frame_bytes = 2 * ((1 + vision.patches) * vision.width + bundle.manifest.model.language.hidden)
    monkeypatch.setattr(stream_session, "FEATURES_BYTES", 5 * frame_bytes)
    with streaming(bundle, remembers=True) as session:
        show(session, 0, 20)
        session.ask("Why?")
        assert list(session.answers())[-1].frames == 5
        assert next(session.answers()).frames == 20


def test_there_is_no_answer_before_a_frame(session: StreamSession) -> None:
    assert list(session.answers()) == []


def test_a_window_that_does_not_fit_the_context_is_told_with_what_does(bundle: Bundle) -> None:
    small = changed(bundle, context_length=700)
    with pytest.raises(PromptError, match=r"a window of 600 s is 601 frames .* at most 91 frames"):
        StreamSession(small, window_seconds=600, max_new_tokens=TOKENS)
    assert StreamSession(small, max_new_tokens=TOKENS).window.max_frames == 91  # nobody asked for more
    with pytest.raises(PromptError, match="Lower --max-new-tokens"):
        StreamSession(small, max_new_tokens=300)
    with pytest.raises(UsageError, match="max-new-tokens is 0"):
        StreamSession(small, max_new_tokens=0)


def test_a_budget_too_small_for_the_questions_caches_and_one_frame_is_told(bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match=r"leaves nothing for features; expected at least [\d,.]+ MiB"):
        streaming(bundle, memory_bytes=64 << 20)
    with streaming(bundle, memory_bytes=8 << 30) as session:
        show(session, 0, 1)
        assert next(session.answers()).frames == 1


def test_a_picture_that_makes_features_of_no_number_is_told_by_its_frame(session: StreamSession) -> None:
    show(session, 0, 2)
    broken = pixels(session.bundle, 2, 1)
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(BundleError, match="the features of frame 2"):
        session.see(broken, times(2, 1))
    assert next(session.answers()).frames == 2
