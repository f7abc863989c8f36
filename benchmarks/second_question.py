"""A second question about a watched ten-minute video: nothing is encoded again, and it costs a fraction.

The embedded tiny model watches ten minutes of 720p H.264 at a frame a second.

python -m benchmarks.second_question
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.clips import joined_clip
from benchmarks.report import Line, publish
from llamavid.embedded import default_bundle
from llamavid.runtime.session import VideoSession

FIRST, SECOND = "How many shapes are there?", "What color is the ball?"
ROUNDS = 5


def main() -> None:
    first, second, encoded = list[float](), list[float](), set[tuple[int, int, int]]()
    with tempfile.TemporaryDirectory() as folder:
        clip = joined_clip(Path(folder, "ten_minutes.mp4"), times=114)
        for _ in range(ROUNDS):
            with VideoSession.open(default_bundle()) as session:
                start = time.perf_counter()
                frames = len(session.watch(clip).frames)
                session.ask(FIRST)
                asked, before = time.perf_counter(), session.frames_encoded
                session.ask(SECOND)
                first.append(asked - start)
                second.append(time.perf_counter() - asked)
                encoded.add((frames, before, session.frames_encoded - before))
    ((frames, before, again),) = encoded
    assert again == 0, f"{again} frames were encoded again"
    faster = statistics.median(a / b for a, b in zip(first, second, strict=True))
    lines = [
        Line("frames watched", frames, "", f"{before} encoded: equal pictures once"),
        Line("first question, watching included", statistics.median(first), "s"),
        Line("second question", statistics.median(second), "s", f"{faster:.0f} times sooner"),
        Line("frames encoded again for it", again, ""),
    ]
    publish(
        "second_question",
        "A second question about a ten-minute video",
        "python -m benchmarks.second_question",
        lines,
    )


if __name__ == "__main__":
    main()
