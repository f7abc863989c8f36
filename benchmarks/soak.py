"""Half an hour with a network camera that does in it what others do in months.

`llamavid stream` follows a server on this machine that refuses, does not answer, drops connections, stalls,
speaks garbage, loses pictures and changes its size, one after another. The server knows what it did, and
`stream` what it saw: the counts must agree, memory must stay, and it must end when it is told to.

python -m benchmarks.soak [--minutes 30]
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.report import Line, publish
from benchmarks.resident import run_llamavid
from llamavid.embedded import default_bundle
from tests.clips import write_clip
from tests.runtime.live.rtsp_server import Act, RtspServer

SIZES = ((320, 240), (640, 360), (176, 144))
SECONDS = 12  # of a connection that plays to its end
STALL_SECONDS = 5
MISDEEDS = ("drop", "drop", "stall", "garbage", "lost", "refuse", "nothing")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        acts = _acts(Path(folder), count=int(60 * minutes))
        with RtspServer(acts) as server:
            asked = ("--ask", "What color is the ball?", "--every", "2s", "--window", "2m", "--fps", "2")
            length = ("--for", f"{60 * minutes:.0f}s", "--stall", f"{STALL_SECONDS}s")
            run = run_llamavid("stream", default_bundle(), server.address, *asked, *length, "--json")
            done = acts[: server.connections]
    *events, end = map(json.loads, run.stdout.splitlines())
    answers = [event for event in events if event["event"] == "answer"]
    times = [answer["pts_seconds"] for answer in answers]
    assert all(earlier < later for earlier, later in pairwise(times)), "times run backwards"
    lines = [
        Line("connections", len(done), "", f"in {run.seconds[-1] / 60:.1f} minutes"),
        *_counts(done, end["source"]),
        Line("answers", len(answers), "", f"{end['skipped']} moments skipped"),
        Line("frames", end["source"]["frames"], "", f"{end['stream']['dropped']} dropped in the queue"),
        Line("largest", float(run.resident.max()), "MiB"),
        Line("growth", run.growth(), "MiB", "over the last 60% of the time, along the line of least squares"),
        Line("the decoding process beside it, largest", float(run.children.max()), "MiB"),
    ]
    publish("soak", "A camera that misbehaves", f"python -m benchmarks.soak --minutes {minutes:g}", lines)


def _acts(folder: Path, *, count: int) -> list[Act]:
    """One after another at random, the same each time; sizes change from one to the next."""
    chosen, clips = random.Random(0), []
    for width, height in SIZES:
        path = folder / f"{width}.mp4"
        options = {"preset": "ultrafast", "g": "25"}
        size = (width, height)
        clips.append(
            write_clip(
                path, frames=25 * SECONDS, size=size, codec="libx264", pix_fmt="yuv420p", options=options
            )
        )
    return [_act(chosen.choice(MISDEEDS), chosen.choice(clips), chosen) for _ in range(count)]


def _act(misdeed: str, clip: Path, chosen: random.Random) -> Act:
    if misdeed in ("refuse", "nothing"):
        return Act(clip, answer=misdeed)
    frames = chosen.randrange(100, 25 * SECONDS)
    lost = tuple(range(25, frames, 50)) if misdeed == "lost" else ()
    return Act(clip, frames=frames, then="drop" if misdeed == "lost" else misdeed, lost=lost, speed=1.0)


def _counts(done: Sequence[Act], seen: dict[str, int]) -> list[Line]:
    """What the server did beside what was counted. Its last connection is cut short by the end."""
    *whole, last = done
    played = [act for act in done if act.answer == "play"]
    did = Counter(act.then if act.answer == "play" else act.answer for act in whole)
    expected = {
        "reconnects": len(played) - 1,
        "failed_attempts": did["refuse"] + did["nothing"],
        "stalls": did["stall"],
        "size_changes": sum(a.clip != b.clip for a, b in pairwise(played)),
        "crashes": 0,
        "backwards": 0,
    }
    unsure = f"the last connection ({last.answer}) may not have come so far"
    lines = []
    for name, count in expected.items():
        note = f"the server did {count}"
        if abs(seen[name] - count) == 1:
            note += f": {unsure}"
        elif seen[name] != count:
            note += ": NOT THE SAME"
        lines.append(Line(name.replace("_", " "), seen[name], "", note))
    return [*lines, Line("damaged pictures", seen["damaged"], "")]


if __name__ == "__main__":
    main()
