"""Note [Live times]: whatever a stream says of its times, those of its frames increase."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamavid.runtime.live.source import AHEAD_SECONDS
from llamavid.runtime.live.timeline import Gate, Timeline

TIMES = st.lists(
    st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=50
)


@given(times=TIMES, steps=st.lists(st.floats(0, 5), min_size=50, max_size=50), is_live=st.booleans())
def test_times_increase_whatever_the_stream_says(
    times: list[float | None], steps: list[float], is_live: bool
) -> None:
    timeline, now, before = Timeline(is_live=is_live), 100.0, -math.inf
    for pts, step in zip(times, steps, strict=False):
        now += step
        seconds = timeline.seconds(pts, now=now)
        assert math.isfinite(seconds)
        assert seconds > before
        if is_live:
            assert seconds <= now - 100.0 + AHEAD_SECONDS + 1
        before = seconds


def test_a_stream_s_own_times_are_kept_where_they_are_believable() -> None:
    timeline = Timeline(is_live=True)
    given = [7.0, 7.04, 7.08, 9.0, 9.5]
    assert [timeline.seconds(pts, now=i) for i, pts in enumerate(given)] == pytest.approx(
        [0, 0.04, 0.08, 2, 2.5]
    )
    assert (timeline.backwards, timeline.jumps) == (0, 0)


def test_a_step_back_goes_on_at_the_time_that_has_passed() -> None:
    timeline = Timeline(is_live=True)
    times = [timeline.seconds(pts, now=now) for now, pts in [(0, 5.0), (1, 6.0), (2, 1.0), (3, 2.0)]]
    assert times == [0, 1, 2, 3]
    assert (timeline.backwards, timeline.jumps) == (1, 0)


@pytest.mark.parametrize("fps", [0.1, 1, 3, 24, 25, 30, 1e6])
def test_frames_at_fps_are_kept_of_a_stream_of_25(fps: float) -> None:
    gate = Gate(fps)
    kept = [i / 25 for i in range(2500) if gate.keeps(i / 25)]
    assert kept[0] == 0
    assert len(kept) == pytest.approx(min(100 * fps, 2500), abs=1)
