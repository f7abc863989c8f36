"""A small RTSP server for tests: RTP over the same TCP connection (RFC 2326, 10.12), badly behaved on demand.

Each connection plays the next `Act` of the list, the last one again and again. The video is H.264 (RFC 6184)
or MPEG-4 part 2 (RFC 6416), out of any file that holds it.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext

LARGEST_PAYLOAD = 1200
CLOCK = 90_000


@dataclass(frozen=True)
class Act:
    """What happens to one connection.

    answer: "play"; or "refuse" (404), "unauthorized" (401), "garbage", "nothing" instead of any answer.
    frames: how many are sent; None for all.
    then: "drop" the connection; "stall" and say nothing more; send "garbage" in place of RTP.
    start_seconds: added to the frames' times. shift_at: from this frame on, `shift_seconds` more.
    lost: these pictures are sent in part: their second piece is lost on the way.
    speed: times real time.
    """

    clip: Path | None = None
    answer: str = "play"
    frames: int | None = None
    then: str = "drop"
    start_seconds: float = 0.0
    shift_at: int = 10**9
    shift_seconds: float = 0.0
    lost: tuple[int, ...] = ()
    speed: float = 10.0


class RtspServer:
    """Listens on a free port of this machine from `with` on.

    requests: the first lines that came. connections: how many there were.
    """

    def __init__(self, acts: Sequence[Act]) -> None:
        self.requests: list[str] = []
        self.connections = 0
        self._acts = list(acts)
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._listen, name="rtsp server")]
        self.port = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/camera"

    def __enter__(self) -> RtspServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            act = self._acts[min(self.connections, len(self._acts) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection, act), name="rtsp connection")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, act: Act) -> None:
        connection.settimeout(0.05)
        with connection, suppress(OSError):
            if act.answer == "nothing":
                self._idle(connection)
            if self._agree(connection, act):
                self._play(connection, act)

    def _agree(self, connection: socket.socket, act: Act) -> bool:
        """Requests are answered until the client wants to see something."""
        for request in self._read_requests(connection):
            first, *lines = request.split("\r\n")
            self.requests.append(first)
            number = next(line for line in lines if line.lower().startswith("cseq"))
            head = f"RTSP/1.0 200 OK\r\n{number}\r\n"
            if act.answer == "garbage":
                connection.sendall(bytes(range(256)) * 64)
                return False
            if act.answer in ("refuse", "unauthorized"):
                code = "404 Not Found" if act.answer == "refuse" else "401 Unauthorized"
                demand = 'WWW-Authenticate: Basic realm="camera"\r\n' if act.answer == "unauthorized" else ""
                connection.sendall(f"RTSP/1.0 {code}\r\n{number}\r\n{demand}\r\n".encode())
            elif first.startswith("DESCRIBE"):
                sdp = description(act.clip)
                kind = f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n"
                connection.sendall(f"{head}{kind}{sdp}".encode())
            elif first.startswith("SETUP"):
                transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n"
                connection.sendall((head + transport).encode())
            else:
                start = f"url=track1;seq=0;rtptime={round(act.start_seconds * CLOCK)}"
                public = "Public: DESCRIBE, SETUP, PLAY, TEARDOWN"
                connection.sendall(f"{head}{public}\r\nRTP-Info: {start}\r\n\r\n".encode())
                if first.startswith("PLAY"):
                    return True
        return False

    def _play(self, connection: socket.socket, act: Act) -> None:
        began = time.monotonic()
        connection.settimeout(2)
        sequence = 0
        for index, (seconds, payloads) in enumerate(rtp_payloads(act.clip)):
            if index == act.frames:
                break
            wait = began + seconds / act.speed - time.monotonic()
            if self._closed.wait(max(wait, 0)):
                return
            shift = act.shift_seconds if index >= act.shift_at else 0.0
            stamp = round((seconds + act.start_seconds + shift) * CLOCK) % 2**32
            for at, payload in enumerate(payloads):
                marker = 0x80 if at == len(payloads) - 1 else 0
                header = struct.pack(">BBHII", 0x80, 96 | marker, sequence % 2**16, stamp, 7)
                sequence += 1
                if at == 1 and index in act.lost:
                    continue
                connection.sendall(struct.pack(">cBH", b"$", 0, len(header + payload)) + header + payload)
        if act.then == "garbage":
            connection.sendall(bytes(range(256)) * 512)
        if (
            act.then != "stall"
        ):  # closing with reports unread would reset the connection, and lose what was sent
            connection.shutdown(socket.SHUT_WR)
        self._idle(connection)

    def _idle(self, connection: socket.socket) -> None:
        """Until the client goes, or the server is closed."""
        connection.settimeout(0.05)
        while not self._closed.is_set():
            with suppress(TimeoutError):
                if not connection.recv(4096):
                    return

    def _read_requests(self, connection: socket.socket) -> Iterator[str]:
        received = b""
        while not self._closed.is_set():
            with suppress(TimeoutError):
                new = connection.recv(4096)
                if not new:
                    return
                received += new
            while b"\r\n\r\n" in received:
                request, _, received = received.partition(b"\r\n\r\n")
                yield request.decode()


def description(clip: Path | None) -> str:
    """SDP of a clip's video."""
    assert clip is not None
    with av.open(str(clip)) as container:
        codec = container.streams.video[0].codec_context
        if codec.name == "h264":
            kind, more = "H264", "packetization-mode=1"
        else:
            kind, more = "MP4V-ES", f"profile-level-id=1; config={(codec.extradata or b'').hex()}"
    return (
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {kind}/{CLOCK}\r\na=fmtp:96 {more}\r\na=control:track1\r\n"
    )


def rtp_payloads(clip: Path | None) -> Iterator[tuple[float, list[bytes]]]:
    """Each coded picture's time in seconds, and its RTP payloads."""
    assert clip is not None
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        is_h264 = stream.codec_context.name == "h264"
        filtering = BitStreamFilterContext("h264_mp4toannexb" if is_h264 else "null", stream)
        for packet in container.demux(stream):
            for filtered in filtering.filter(packet if packet.size else None):
                seconds = float((filtered.pts or 0) * stream.time_base)
                yield seconds, _h264(bytes(filtered)) if is_h264 else _pieces(bytes(filtered))


def _h264(annex_b: bytes) -> list[bytes]:
    units = annex_b.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]
    payloads = []
    for unit in units:
        if len(unit) <= LARGEST_PAYLOAD:
            payloads.append(unit)
            continue
        pieces = _pieces(unit[1:])  # FU-A: the unit's first byte goes into each piece's two
        for at, piece in enumerate(pieces):
            place = 0x80 if at == 0 else 0x40 if at == len(pieces) - 1 else 0
            payloads.append(bytes([(unit[0] & 0xE0) | 28, place | (unit[0] & 0x1F)]) + piece)
    return payloads


def _pieces(data: bytes) -> list[bytes]:
    return [data[at : at + LARGEST_PAYLOAD] for at in range(0, len(data), LARGEST_PAYLOAD)]
