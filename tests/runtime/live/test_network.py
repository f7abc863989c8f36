"""A camera on the network that goes away, stalls, changes or lies: that is an event, and frames go on."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from llamavid.errors import SourceError, UsageError
from llamavid.runtime.live.address import read_address
from llamavid.runtime.live.connecting import ConnectedSource
from llamavid.runtime.live.link import LiveLimits
from llamavid.runtime.live.opening import open_live, open_stream_source
from llamavid.runtime.live.source import EventKind, SourceCounters, SourceEvent
from llamavid.runtime.video.decoding import can_isolate
from llamavid.runtime.video.frames import Frame
from llamavid.runtime.video.sources import open_source
from tests.clips import sample_clip, write_clip
from tests.runtime.live.rtsp_server import Act, RtspServer
from tests.runtime.video.test_decoding import only_child

pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs memory files: Linux")

QUICK = LiveLimits(
    connect_seconds=5.0,
    stall_seconds=1.0,
    give_up_seconds=15.0,
    first_pause_seconds=0.05,
    longest_pause_seconds=0.2,
)
TOO_LONG_SECONDS = 20.0


@dataclass
class Seen:
    source: ConnectedSource
    events: list[SourceEvent] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    @property
    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]

    @property
    def counters(self) -> SourceCounters:
        return self.source.counters


def watch(
    address: str,
    *,
    until: Callable[[SourceCounters], bool],
    fps: float = 1e6,
    limits: LiveLimits = QUICK,
    on_frame: Callable[[Frame], None] = lambda frame: None,
) -> Seen:
    """Reads until `until` holds; every test fails rather than waits."""
    seen = Seen(open_live(address, fps=fps, limits=limits))

    def note(event: SourceEvent) -> None:
        seen.events.append(event)
        if until(seen.source.counters):
            seen.source.close()

    seen.source._on_event = note
    too_long = threading.Timer(TOO_LONG_SECONDS, seen.source.close)
    too_long.start()
    try:
        for frame in seen.source.frames():
            seen.frames.append(frame)
            on_frame(frame)
            if until(seen.source.counters):
                break
    finally:
        seen.source.close()
        too_long.cancel()
        too_long.join()
    assert until(seen.source.counters), (seen.source.counters, seen.events)
    times = [frame.pts_seconds for frame in seen.frames]
    assert all(a < b for a, b in itertools.pairwise(times))
    assert [frame.index for frame in seen.frames] == list(range(len(times)))
    return seen


def h264(path: Path, size: tuple[int, int] = (64, 48), frames: int = 25) -> Path:
    return write_clip(path, frames=frames, size=size, codec="libx264", pix_fmt="yuv420p", options={"g": "10"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return h264(tmp_path_factory.mktemp("live") / "a.mp4")


@pytest.mark.parametrize("name", ["bikes", "bigbuckbunny"])
def test_a_stream_s_frames_are_those_of_the_file_that_is_sent(name: str) -> None:
    """Whole pictures, by the packets of a real clip, in pieces as RTP sends them."""
    with open_source(sample_clip(name), fps=1e6) as file, RtspServer([Act(sample_clip(name))]) as server:
        expected = list(itertools.islice(file.frames(), 60))
        seen = watch(server.address, until=lambda counters: counters.frames == 60)
    assert seen.counters == SourceCounters(frames=60)
    assert seen.kinds == [EventKind.CONNECTED]
    start = seen.frames[0].pts_seconds
    for frame, of_file in zip(seen.frames, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, of_file.rgb)
        assert frame.pts_seconds - start == pytest.approx(of_file.pts_seconds, abs=1e-3)


def test_frames_are_kept_by_their_times(clip: Path) -> None:
    with RtspServer([Act(clip)]) as server:
        seen = watch(server.address, fps=5, until=lambda counters: counters.frames == 5)
    start = seen.frames[0].pts_seconds
    assert [f.pts_seconds - start for f in seen.frames] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=1e-3)


def test_a_connection_that_drops_is_made_again_and_the_gap_stays_a_gap(clip: Path) -> None:
    limits = LiveLimits(first_pause_seconds=1.0)
    with RtspServer([Act(clip, speed=1)]) as server:
        seen = watch(server.address, limits=limits, until=lambda counters: counters.frames == 30)
    assert seen.counters == SourceCounters(frames=30, reconnects=1)
    assert seen.kinds == [EventKind.CONNECTED, EventKind.LOST, EventKind.CONNECTED]
    times = [frame.pts_seconds for frame in seen.frames]
    gaps = np.diff(times)
    assert gaps.argmax() == 24
    assert 0.5 <= gaps[24] < 5  # half of the pause at least
    np.testing.assert_allclose(np.delete(gaps, 24), 0.04, atol=1e-3)
    lost, connected = seen.events[1:]
    assert times[0] < lost.at_seconds < connected.at_seconds <= times[25] + 0.1


def test_a_stall_is_noticed_and_connected_anew(clip: Path) -> None:
    with RtspServer([Act(clip, frames=10, then="stall"), Act(clip)]) as server:
        seen = watch(server.address, until=lambda counters: counters.frames == 20)
    assert seen.counters == SourceCounters(frames=20, reconnects=1, stalls=1)
    assert seen.kinds == [EventKind.CONNECTED, EventKind.STALLED, EventKind.CONNECTED]
    assert "no picture came for 1 s" in seen.events[1].text


def test_another_size_and_codec_after_a_drop_are_taken_and_counted(clip: Path, tmp_path: Path) -> None:
    larger = h264(tmp_path / "larger.mp4", size=(96, 80))
    mpeg4 = write_clip(
        tmp_path / "b.mp4", size=(96, 80), codec="mpeg4", pix_fmt="yuv420p", options={"qscale": "2"}
    )
    with RtspServer([Act(clip, frames=5), Act(larger, frames=5), Act(mpeg4)]) as server:
        seen = watch(
            server.address, until=lambda counters: counters.codec_changes == 1 and counters.frames > 12
        )
    assert seen.counters.reconnects == 2
    assert (seen.counters.size_changes, seen.counters.codec_changes) == (1, 1)
    shapes = [shape for shape, _ in itertools.groupby(frame.rgb.shape for frame in seen.frames)]
    assert shapes == [(48, 64, 3), (80, 96, 3)]
    texts = [event.text for event in seen.events if event.kind in (EventKind.SIZE, EventKind.CODEC)]
    assert "frames are 96 x 80 pixels now" in texts[0]
    assert "the codec is 'mpeg4' now, and was 'h264'" in texts[1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("refuse", "404"), ("garbage", "cannot be opened"), ("nothing", "no answer|did not answer")],
)
def test_a_server_that_comes_up_later_is_waited_for(clip: Path, answer: str, reason: str) -> None:
    limits = LiveLimits(connect_seconds=0.5, first_pause_seconds=0.05)
    with RtspServer([Act(answer=answer), Act(answer=answer), Act(clip)]) as server:
        seen = watch(server.address, limits=limits, until=lambda counters: counters.frames == 3)
    assert seen.counters == SourceCounters(frames=3, failed_attempts=2)
    assert seen.kinds == [EventKind.UNREACHABLE, EventKind.UNREACHABLE, EventKind.CONNECTED]


def test_garbage_between_frames_does_not_end_the_stream(clip: Path) -> None:
    with RtspServer([Act(clip, frames=10, then="garbage"), Act(clip)]) as server:
        seen = watch(server.address, until=lambda counters: counters.reconnects == 1)
    assert seen.counters.reconnects == 1
    assert seen.counters.crashes == 0
    assert seen.counters.frames >= 9


def test_a_picture_that_loses_a_piece_is_counted_as_damaged() -> None:
    with RtspServer([Act(sample_clip("bikes"), lost=(31,), speed=20)]) as server:
        seen = watch(server.address, until=lambda counters: counters.frames >= 100)
    assert seen.counters.damaged == 1
    assert EventKind.DAMAGED in seen.kinds


@pytest.mark.parametrize("answer", ["refuse", "garbage", "nothing"])
def test_a_server_that_never_comes_up_is_given_up(answer: str) -> None:
    limits = LiveLimits(connect_seconds=0.5, give_up_seconds=1.5, first_pause_seconds=0.05)
    start = time.monotonic()
    with RtspServer([Act(answer=answer)]) as server, pytest.raises(SourceError) as caught:
        watch(server.address, limits=limits, until=lambda counters: False)
    assert "gave no frame for 1.5 s" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 8


def test_a_refused_connection_is_given_up_too_and_each_attempt_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    source = open_live(
        f"rtsp://127.0.0.1:{port}/", limits=LiveLimits(give_up_seconds=3, first_pause_seconds=0.1)
    )
    with pytest.raises(SourceError, match="Connection refused"):
        list(source.frames())
    assert source.counters.failed_attempts >= 2


def test_a_wrong_password_is_said_at_once_and_never_shown() -> None:
    """Trying again would lock the account; and addresses end up in logs."""
    with RtspServer([Act(answer="unauthorized")]) as server:
        address = server.address.replace("rtsp://", "rtsp://harry:s3cret@") + "?token=t0ken"
        events: list[SourceEvent] = []
        source = open_live(address, on_event=events.append)
        start = time.monotonic()
        with pytest.raises(SourceError, match="refuses the name and password") as caught:
            list(source.frames())
        assert time.monotonic() - start < 8
    shown = f"{caught.value!r} {caught.value.__cause__!r} {events} {source!r} {source.name} {source._address}"
    for secret in ("harry", "s3cret", "t0ken"):
        assert secret not in shown
    assert f"rtsp://127.0.0.1:{server.port}/camera?..." in str(caught.value)


def test_a_password_is_in_no_process_s_command_line(clip: Path) -> None:
    shown: list[bytes] = []
    with RtspServer([Act(clip)]) as server:
        watch(
            server.address.replace("rtsp://", "rtsp://harry:s3cret@"),
            until=lambda counters: counters.frames == 1,
            on_frame=lambda _: shown.extend(
                Path(f"/proc/{only_child()}/{name}").read_bytes() for name in ("cmdline", "environ")
            ),
        )
    assert len(shown) == 2
    assert not any(b"s3cret" in text for text in shown)


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_is_a_reconnect(clip: Path, how: signal.Signals) -> None:
    def crash(frame: Frame) -> None:
        if frame.index == 4:
            os.kill(only_child(), how)

    with RtspServer([Act(clip, speed=1)]) as server:
        seen = watch(server.address, on_frame=crash, until=lambda counters: counters.reconnects == 1)
    assert seen.counters.crashes == 1
    assert seen.counters.reconnects == 1
    assert seen.kinds == [EventKind.CONNECTED, EventKind.CRASHED, EventKind.CONNECTED]
    assert how.name in seen.events[1].text


def test_a_decoder_that_hangs_is_a_stall(clip: Path) -> None:
    def hang(frame: Frame) -> None:
        if frame.index == 4:
            os.kill(only_child(), signal.SIGSTOP)

    with RtspServer([Act(clip, speed=1)]) as server:
        seen = watch(server.address, on_frame=hang, until=lambda counters: counters.reconnects == 1)
    assert seen.counters.stalls == 1
    assert seen.kinds == [EventKind.CONNECTED, EventKind.STALLED, EventKind.CONNECTED]


@pytest.mark.parametrize(("shift", "kind"), [(-0.5, "backwards"), (5000.0, "jumps"), (-5000.0, "jumps")])
def test_a_camera_that_sets_its_clock_goes_on_at_the_time_that_has_passed(
    clip: Path, shift: float, kind: str
) -> None:
    """FFmpeg takes a long way back for the overflow of RTP's 32 bits, and so for a way ahead."""
    act = Act(clip, shift_at=12, shift_seconds=shift, start_seconds=6000, speed=1)
    with RtspServer([act]) as server:
        seen = watch(server.address, until=lambda counters: counters.frames == 20)
    assert seen.counters == SourceCounters(frames=20, **{kind: 1}), seen.events
    gaps = np.diff([frame.pts_seconds for frame in seen.frames])
    assert gaps.max() < 2
    np.testing.assert_allclose(np.delete(gaps, 11), 0.04, atol=1e-3)


@pytest.mark.parametrize("moment", ["connecting", "frames come", "stalled", "pausing"])
def test_closing_from_another_thread_ends_within_a_second(clip: Path, moment: str) -> None:
    acts = {
        "connecting": Act(answer="nothing"),
        "frames come": Act(clip, speed=0.5),
        "stalled": Act(clip, frames=1, then="stall"),
        "pausing": Act(answer="refuse"),
    }
    limits = LiveLimits(first_pause_seconds=30)
    with RtspServer([acts[moment]]) as server:
        source = open_live(server.address, fps=1e6, limits=limits)
        reader = threading.Thread(target=lambda: list(source.frames()))
        reader.start()
        time.sleep(1.5)
        assert reader.is_alive()
        source.close()
        reader.join(timeout=1)
        assert not reader.is_alive()
        source.close()


def test_a_source_that_nobody_reads_on_leaves_nothing(clip: Path) -> None:
    with RtspServer([Act(clip, speed=0.5)]) as server:
        source = open_live(server.address)
        frames = source.frames()
        next(frames)
        source.close()
        assert list(frames) == []
        with pytest.raises(UsageError, match="were read before this"):
            source.frames()


# How it is written


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("file:///etc/passwd", "addresses of file:// are not read; expected a file, a folder of pictures"),
        ("ftp://host/a.mp4", "addresses of ftp:// are not read"),
        ("concat://a|b", "addresses of concat:// are not read"),
        ("rtsp://", "is no whole address"),
        ("rtsp://user:pa/ss@host/", "is no whole address"),
        ("rtsp://user:p s@host/", "is no whole address"),
        ("rtsp://host/\na", "is no whole address"),
        ("camera:", "names no camera; expected 'camera:0'"),
        ("camera:first", "names no camera"),
        ("gst:", "names no pipeline"),
    ],
)
def test_an_address_of_no_known_form_is_a_usage_error(spec: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        open_stream_source(spec)
    assert "pa/ss" not in str(caught.value)
    assert "p s@" not in str(caught.value)


def test_a_path_that_is_not_there_lists_the_forms(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"there is no '.*missing.mp4'; expected a file, a folder .* rtsp://"
    ):
        open_stream_source(tmp_path / "missing.mp4")
    with pytest.raises(UsageError, match="is no live source; expected"):
        open_live("clip.mp4")


@pytest.mark.parametrize(
    ("spec", "name", "target"),
    [
        ("camera:2", "/dev/video2", "/dev/video2"),
        ("/dev/video0", "/dev/video0", "/dev/video0"),
        ("camera:/dev/v4l/by-id/cam", "/dev/v4l/by-id/cam", "/dev/v4l/by-id/cam"),
        ("RTSP://u:p@Host:554/a?b=c", "rtsp://Host:554/a?...", "rtsp://u:p@Host:554/a?b=c"),
        ("rtsp://u:p@[::1]:554/a#b", "rtsp://[::1]:554/a?...", "rtsp://u:p@[::1]:554/a#b"),
        ("gst: v4l2src device=/dev/video0 ! appsink", "gst: v4l2src ! ...", "v4l2src device=/dev/video0"),
        ("gst:rtspsrc location=rtsp://u:p@h ! x", "gst: rtspsrc ! ...", "rtspsrc location=rtsp://u:p@h ! x"),
    ],
)
def test_what_is_shown_of_an_address_and_what_the_decoder_gets(spec: str, name: str, target: str) -> None:
    address = read_address(spec)
    assert address is not None
    assert (address.name, address.target) == (name, target)
    assert target not in repr(address) or target == name


def test_a_camera_that_is_not_there_is_waited_for_and_given_up() -> None:
    source = open_live("camera:99", limits=LiveLimits(give_up_seconds=0.5, first_pause_seconds=0.1))
    with pytest.raises(
        SourceError, match=r"'/dev/video99' gave no frame for 0\.5 s.*No such file or directory"
    ):
        list(source.frames())
