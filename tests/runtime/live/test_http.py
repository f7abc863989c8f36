"""Streams over HTTP: a webcam's pictures in a row, a transport stream. No files, nor a way to one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from llamavid.errors import SourceError
from llamavid.runtime.live.link import LiveLimits
from llamavid.runtime.live.opening import open_live
from llamavid.runtime.live.source import EventKind, SourceEvent
from llamavid.runtime.video.decoding import can_isolate
from tests.clips import drawn_frame, write_clip

pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs memory files: Linux")

QUICK = LiveLimits(connect_seconds=5, stall_seconds=1, give_up_seconds=15, first_pause_seconds=0.05)


@contextmanager
def served(body: bytes, *, kind: str = "video/mp2t", location: str = "") -> Iterator[str]:
    """The address of a server that gives `body` to all who ask, or sends them to `location`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if location else 200)
            self.send_header("Location" if location else "Content-Type", location or kind)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stream"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def webcam_pictures(count: int) -> bytes:
    parts = []
    for index in range(count):
        jpeg = BytesIO()
        Image.fromarray(drawn_frame(index)).save(jpeg, "JPEG")
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.tell()}\r\n\r\n"
        parts.append(head.encode() + jpeg.getvalue() + b"\r\n")
    return b"".join(parts)


def test_a_webcam_s_pictures_come_and_come_again_after_an_end() -> None:
    with served(webcam_pictures(10), kind="multipart/x-mixed-replace;boundary=frame") as address:
        source = open_live(address, fps=1e6, limits=QUICK)
        for _ in source.frames():
            if source.counters.frames == 15:
                source.close()
    assert (source.counters.frames, source.counters.reconnects) == (15, 1)


def test_a_transport_stream_comes(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.ts", codec="libx264", pix_fmt="yuv420p")
    with served(clip.read_bytes()) as address:
        source = open_live(address, fps=1e6, limits=QUICK)
        for _ in source.frames():
            if source.counters.frames == 20:
                source.close()
    assert source.counters.frames == 20


def first_reason(address: str) -> str:
    events: list[SourceEvent] = []
    limits = LiveLimits(give_up_seconds=1.5, first_pause_seconds=0.2)
    with pytest.raises(SourceError):
        list(open_live(address, limits=limits, on_event=events.append).frames())
    assert {event.kind for event in events} <= {EventKind.UNREACHABLE}
    return events[0].text if events else ""


def test_a_file_a_playlist_and_a_way_to_a_local_file_are_refused(tmp_path: Path) -> None:
    """What the other side answers must not lead FFmpeg to a file of this machine."""
    clip = write_clip(tmp_path / "a.mp4", codec="libx264", pix_fmt="yuv420p")
    local = write_clip(tmp_path / "local.ts", codec="libx264", pix_fmt="yuv420p")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{local}\n#EXT-X-ENDLIST\n"
    with served(clip.read_bytes(), kind="video/mp4") as address:
        first_reason(address)
    with served(playlist.encode(), kind="application/vnd.apple.mpegurl") as address:
        first_reason(address)
    with served(b"", location=f"file://{local}") as address:
        first_reason(address)
