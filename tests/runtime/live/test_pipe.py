"""A video through the standard input of a real process, as a shell's pipe gives it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llamavid.runtime.video.decoding import can_isolate
from tests.clips import write_clip

pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs memory files: Linux")

READ_THE_PIPE = """
import json, sys
from dataclasses import asdict
from llamavid.errors import LlamaVidError
from llamavid.runtime.live.link import LiveLimits
from llamavid.runtime.live.opening import open_stream_source
events = []
limits = LiveLimits(stall_seconds=0.3, give_up_seconds=float(sys.argv[2]))
try:
    source = open_stream_source("-", fps=float(sys.argv[1]), limits=limits, on_event=events.append)
    frames = [(f.index, f.pts_seconds, f.rgb.shape, int(f.rgb.sum())) for f in source.frames()]
except LlamaVidError as error:
    print(json.dumps({"error": str(error)}))
else:
    events = [(event.kind.value, event.text) for event in events]
    print(json.dumps({"frames": frames, "events": events, "counters": asdict(source.counters)}))
"""


def start(*, fps: float = 1e6, give_up_seconds: float = 20, **more: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", READ_THE_PIPE, str(fps), str(give_up_seconds)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], **streams)  # type: ignore[call-overload]


def outcome(process: subprocess.Popen[bytes], sent: bytes | None = None) -> dict:
    output, said = process.communicate(sent, timeout=60)
    assert (process.returncode, said) == (0, b"")
    return json.loads(output)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        (".ts", "libx264", "yuv420p"),
        (".mkv", "libx264", "yuv420p"),
        (".y4m", "rawvideo", "yuv420p"),
        (".mjpeg", "mjpeg", "yuvj420p"),
        (".h264", "libx264", "yuv420p"),
    ],
)
def test_what_is_piped_in_gives_all_its_frames(tmp_path: Path, suffix: str, codec: str, pix_fmt: str) -> None:
    options = {"qscale": "2"} if codec == "mjpeg" else {}
    clip = write_clip(tmp_path / f"a{suffix}", frames=50, codec=codec, pix_fmt=pix_fmt, options=options)
    seen = outcome(start(), clip.read_bytes())
    assert [index for index, *_ in seen["frames"]] == list(range(50))
    times = [seconds for _, seconds, *_ in seen["frames"]]
    assert times == pytest.approx([i / 25 for i in range(50)], abs=1e-3)
    assert [kind for kind, _ in seen["events"]] == ["connected", "ended"]
    assert seen["events"][-1][1] == "the standard input after 50 frames: the other side ended the stream."
    assert seen["counters"] == {**dict.fromkeys(seen["counters"], 0), "frames": 50}


def test_sound_that_begins_in_the_middle_is_left_out_with_a_note(tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "a.ts", frames=50, codec="libx264", pix_fmt="yuv420p").read_bytes()
    sounding = write_clip(tmp_path / "b.ts", frames=50, codec="libx264", pix_fmt="yuv420p", audio=True)
    seen = outcome(start(), silent * 20 + sounding.read_bytes())
    assert len(seen["frames"]) == 21 * 50
    assert ["note", "Further streams begin in the middle of it: they are left out."] in seen["events"]
    assert seen["events"][-1][0] == "ended"


def test_colours_that_ffmpeg_does_not_convert_are_the_source_s_fault(tmp_path: Path) -> None:
    options = {"colorspace": "ictcp"}
    clip = write_clip(tmp_path / "a.mkv", codec="libx264", pix_fmt="yuv420p", options=options)
    error = outcome(start(), clip.read_bytes())["error"]
    assert error.startswith("'the standard input' gives frames without an RGB form (")


def test_frames_are_kept_by_their_times(tmp_path: Path) -> None:
    seen = outcome(start(fps=2), write_clip(tmp_path / "a.mkv", frames=60).read_bytes())
    times = [seconds for _, seconds, *_ in seen["frames"]]
    assert times == pytest.approx(
        [0, 0.52, 1.0, 1.52, 2.0], abs=1e-3
    )  # the first at or after each half second


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_pipe_that_ends_too_soon_ends_with_a_note(tmp_path: Path, suffix: str) -> None:
    data = write_clip(tmp_path / f"a{suffix}", frames=50).read_bytes()
    seen = outcome(start(), data[: len(data) * 2 // 3])
    assert 20 < len(seen["frames"]) < 45
    assert seen["events"][-1][0] == "ended"
    assert f"after {len(seen['frames'])} frames" in seen["events"][-1][1]


def test_a_size_that_changes_midway_is_taken_and_counted(tmp_path: Path) -> None:
    """And the second clip begins at 0 again: its frames go on after the first's."""
    small = write_clip(tmp_path / "small.ts", frames=5, codec="libx264", pix_fmt="yuv420p", options={})
    large = write_clip(
        tmp_path / "l.ts", frames=5, size=(96, 80), codec="libx264", pix_fmt="yuv420p", options={}
    )
    seen = outcome(start(), small.read_bytes() + large.read_bytes())
    assert [shape for *_, shape, _ in seen["frames"]] == [[48, 64, 3]] * 5 + [[80, 96, 3]] * 5
    times = [seconds for _, seconds, *_ in seen["frames"]]
    assert times == pytest.approx([i / 25 for i in range(10)], abs=1e-3)
    assert (seen["counters"]["size_changes"], seen["counters"]["backwards"]) == (1, 1)
    assert {"size", "backwards"} < {kind for kind, _ in seen["events"]}


@pytest.mark.parametrize("sent", [b"", b"no video at all\n" * 1000, b"\0" * 100_000])
def test_what_is_no_video_is_one_line(sent: bytes) -> None:
    error = outcome(start(), sent)["error"]
    assert "the standard input" in error
    assert "\n" not in error


def test_a_pipe_that_never_says_anything_is_given_up() -> None:
    with start(give_up_seconds=2) as process:
        assert process.stdout is not None
        error = json.loads(process.stdout.readline())["error"]  # the pipe is still open
    assert "gave no frame for 2 s" in error


def test_a_pipe_that_pauses_is_waited_for_and_the_wait_is_told(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", frames=50).read_bytes()
    with start() as process:
        assert process.stdin is not None
        process.stdin.write(data[: len(data) // 2])
        process.stdin.flush()
        time.sleep(5)
        seen = outcome(process, data[len(data) // 2 :])
    assert len(seen.get("frames", ())) == 50, seen
    assert seen["counters"]["stalls"] == 1
    assert [kind for kind, _ in seen["events"]] == ["connected", "stalled", "ended"]


def test_a_standard_input_that_is_closed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "read.py").write_text(READ_THE_PIPE)
    command = f"exec '{sys.executable}' {tmp_path}/read.py 1 20 <&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60)
    assert "the standard input is closed" in json.loads(done.stdout)["error"]


def test_a_standard_input_that_is_empty_is_one_line() -> None:
    seen = outcome(start(stdin=subprocess.DEVNULL))
    assert "the standard input" in seen["error"]
