"""Pictures of a network stream, a camera or a pipe by FFmpeg, in the decoder's process.

Note [What FFmpeg may reach]
    An address on the network may use the protocols of its scheme and no others: never a file, a pipe or
    another scheme, whatever the other side answers. Containers are listed too, without playlists. A camera is
    opened by FFmpeg's V4L2 reader alone. A pipe is read here and handed to FFmpeg, which gets no protocol.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from llamavid.errors import SourceError
from llamavid.runtime.live.connection import Decoded, FinalError, Pictures
from llamavid.runtime.video.frames import MAX_PIXELS
from llamavid.runtime.video.videos import (
    CONTAINERS,
    FFMPEG_ERRORS,
    LATE_STREAMS,
    STARVED,
    Upright,
    chosen_stream,
    out_of_memory,
)
from llamavid.runtime.yuv import Picture

PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,udp,tcp,tls",
    "http": "http,tcp",
    "https": "https,http,tcp,tls",
}
NETWORK_CONTAINERS = "rtsp,sdp,rtp,mpegts,mpjpeg,mjpeg,matroska,flv,h264,hevc"
PIPE_CONTAINERS = f"{CONTAINERS},mjpeg,mpjpeg,nut"
WITHOUT_TIMES = ("mjpeg", "mpjpeg", "h264", "hevc")  # what FFmpeg says of these is made up

REFUSED = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)
WAIT_SECONDS = 1.0
PROBE_MICROSECONDS = 1_000_000  # of stream to look at before the first frame, where the header says little


def network_pictures(address: str, name: str, *, seconds: float, opened: ExitStack) -> Pictures:
    """seconds: how long connecting, and each read, may take.

    Raises:
        SourceError: it does not answer, or not with a stream.
    """
    scheme = address.partition(":")[0]
    is_rtsp = scheme.startswith("rtsp")
    options = {
        "protocol_whitelist": PROTOCOLS[scheme],
        "format_whitelist": NETWORK_CONTAINERS,
        "analyzeduration": str(PROBE_MICROSECONDS),
        "fpsprobesize": "2",  # frames to guess the rate by: nothing waits for it here
    }
    if is_rtsp:
        options |= {"rtsp_flags": "prefer_tcp", "allowed_media_types": "video"}
    container = _opened(address, name, options, opened, format="rtsp" if is_rtsp else None, seconds=seconds)
    if not is_rtsp and (container.duration or 0) > 0:
        raise FinalError(
            f"{name!r} is a file with an end", expected="a stream", next_step="Download it first."
        )
    return _FFmpegPictures(container, name, is_live=True, opened=opened)


def camera_pictures(device: str, *, opened: ExitStack) -> Pictures:
    if "video4linux2,v4l2" in av.formats_available:
        container = _opened(device, device, {}, opened, format="video4linux2")
        return _FFmpegPictures(container, device, is_live=True, opened=opened)
    from llamavid.runtime.live.opencv import camera_pictures_by_opencv

    return camera_pictures_by_opencv(device, opened=opened)


def pipe_pictures(
    descriptor: int, name: str, *, on_wait: Callable[[float], None], opened: ExitStack
) -> Pictures:
    """on_wait: called each second that nothing comes, with the seconds that is so."""
    options = {"protocol_whitelist": "", "format_whitelist": PIPE_CONTAINERS}
    container = _opened(_Pipe(descriptor, on_wait), name, options, opened)
    return _FFmpegPictures(container, name, is_live=False, opened=opened)


class _Pipe:
    """What PyAV reads from. Without `seek`, so that it does not try."""

    def __init__(self, descriptor: int, on_wait: Callable[[float], None]) -> None:
        self._descriptor, self._on_wait = descriptor, on_wait
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def read(self, size: int) -> bytes:
        began = time.monotonic()
        while not self._poll.poll(1000 * WAIT_SECONDS):
            self._on_wait(time.monotonic() - began)
        return os.read(self._descriptor, size)


class _FFmpegPictures:
    """The stream's pictures in display order; what cannot be decoded is counted and passed over."""

    def __init__(self, container: InputContainer, name: str, *, is_live: bool, opened: ExitStack) -> None:
        # Frame threads hold back as many frames as there are threads.
        thread_type = "SLICE" if is_live else "AUTO"
        self._stream = chosen_stream(container, name, thread_type=thread_type)
        self._container, self._name = container, name
        rate = self._stream.average_rate or self._stream.guessed_rate or 25
        self.frame_seconds, self.damaged, self.notes = 1 / float(rate), 0, list[str]()
        self._has_times = container.format.name not in WITHOUT_TIMES
        self._upright = Upright(self.notes)

    def __iter__(self) -> Iterator[Decoded]:
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = self._stream.decode(packet)
                except STARVED:
                    raise
                except FFMPEG_ERRORS:
                    self.damaged += 1
                    continue
                yield from map(self._picture, frames)
        except IndexError:  # PyAV at the very end, as in `llamavid.runtime.video.videos`
            self.notes.append(LATE_STREAMS)
        except STARVED as error:
            raise out_of_memory(self._name) from error
        except FFMPEG_ERRORS as error:
            raise SourceError(f"{self._name!r} broke off ({error.strerror})") from error

    def _picture(self, frame: VideoFrame) -> Decoded:
        has_time = self._has_times and frame.pts is not None
        return Decoded(
            pts_seconds=frame.time if has_time else None,
            width=frame.width,
            height=frame.height,
            codec=self._stream.codec_context.name,
            is_whole=not frame.is_corrupt,
            picture=lambda: self._shown(frame),
        )

    def _shown(self, frame: VideoFrame) -> Picture:
        try:
            return self._upright(frame)
        except STARVED as error:
            raise out_of_memory(self._name) from error
        except FFMPEG_ERRORS as error:
            given = f"{self._name!r} gives frames without an RGB form ({error.strerror})"
            raise SourceError(given) from error


def _opened(
    file: object,
    name: str,
    container_options: dict[str, str],
    opened: ExitStack,
    *,
    format: str | None = None,
    seconds: float | None = None,
) -> InputContainer:
    try:
        container = av.open(
            file,
            mode="r",
            format=format,
            options={"max_pixels": str(MAX_PIXELS)},
            container_options=container_options,
            metadata_errors="replace",
            timeout=seconds,
        )
    except STARVED as error:
        raise out_of_memory(name) from error
    except REFUSED as error:
        raise FinalError(f"{name!r} refuses the name and password", next_step="Correct them.") from error
    except av.error.ExitError as error:
        raise SourceError(f"{name!r} did not answer within {seconds:g} s") from error
    except FFMPEG_ERRORS as error:
        raise SourceError(f"{name!r} cannot be opened ({error.strerror})") from error
    return opened.enter_context(container)
