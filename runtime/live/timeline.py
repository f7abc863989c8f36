"""One connection's times: Note [Live times] in `llamavid.runtime.live.source`. And which frames are kept."""

from __future__ import annotations

import math

from llamavid.runtime.live.source import AHEAD_SECONDS

LEAST_STEP_SECONDS = 1e-3
LONGEST_STEP_SECONDS = 24 * 3600.0  # between two frames of a pipe


class Timeline:
    """Seconds after the connection's first frame, strictly increasing.

    backwards, jumps: frames whose own times were not believed.
    """

    def __init__(self, *, is_live: bool, frame_seconds: float = 0.04) -> None:
        """frame_seconds: how long a frame is shown, where the stream's times do not say."""
        self.backwards = self.jumps = 0
        self._is_live, self._frame_seconds = is_live, frame_seconds
        self._zero: float | None = None  # the stream's own time of 0
        self._began: float | None = None
        self._latest = -math.inf

    def seconds(self, pts_seconds: float | None, *, now: float) -> float:
        """The time of a frame that the stream places at `pts_seconds` and that came at `now`."""
        if pts_seconds is not None and not math.isfinite(pts_seconds):
            pts_seconds = None
        if self._began is None:
            self._began, self._latest = now, 0.0
            self._zero = pts_seconds
            return 0.0
        passed = now - self._began if self._is_live else self._latest + self._frame_seconds
        passed = max(passed, self._latest + LEAST_STEP_SECONDS)
        if pts_seconds is None:
            self._latest = passed
            return passed
        if self._zero is None:  # FFmpeg gives no time to the first frame of many cameras
            self._zero = pts_seconds - max(passed, self._latest + self._frame_seconds)
        seconds = pts_seconds - self._zero
        most = now - self._began + AHEAD_SECONDS if self._is_live else self._latest + LONGEST_STEP_SECONDS
        is_backwards, is_ahead = seconds <= self._latest, seconds > most
        if is_backwards or is_ahead:
            self.backwards += is_backwards
            self.jumps += not is_backwards
            seconds, self._zero = passed, pts_seconds - passed
        self._latest = seconds
        return seconds


class Gate:
    """Which frames are kept: the first one, then the first at or after each multiple of 1 / fps."""

    def __init__(self, fps: float) -> None:
        self._fps, self._next = fps, 0.0

    def keeps(self, seconds: float) -> bool:
        place = seconds * self._fps + 1e-6  # times are rounded to the stream's time base
        if place < self._next:
            return False
        self._next = math.floor(place) + 1.0
        return True
