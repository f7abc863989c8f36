"""From what the user writes to a source of frames."""

from __future__ import annotations

import os

from llamavid.errors import DeviceError, SourceError, UsageError
from llamavid.runtime.live.address import FORMS, Address, AddressKind, read_address
from llamavid.runtime.live.connecting import ConnectedSource
from llamavid.runtime.live.files import FileSource
from llamavid.runtime.live.link import STANDARD_INPUT, LiveLimits
from llamavid.runtime.live.source import OnEvent, StreamSource, ignore
from llamavid.runtime.video.decoding import can_isolate
from llamavid.runtime.video.frames import check_fps


def open_stream_source(
    spec: str | os.PathLike[str],
    *,
    fps: float = 1.0,
    limits: LiveLimits | None = None,
    on_event: OnEvent = ignore,
) -> StreamSource:
    """A file, a folder of pictures, or what `open_live` opens: what it is goes by how it is written.

    fps: frames to keep for each second; of a folder, the frames that are a second.

    Raises:
        UsageError: `fps` is not a number above 0, or the address is of no known form.
        SourceError: there is no such file, or it cannot be read.
        DeviceError: this machine cannot decode in a process of its own.
    """
    address = read_address(os.fspath(spec))
    if address is not None:
        return _connected(address, fps=fps, limits=limits, on_event=on_event)
    if not os.path.lexists(spec):
        raise SourceError(f"there is no {os.fspath(spec)!r}", expected=FORMS)
    return FileSource(spec, fps=fps, on_event=on_event)


def open_live(
    spec: str, *, fps: float = 1.0, limits: LiveLimits | None = None, on_event: OnEvent = ignore
) -> ConnectedSource:
    """A camera, a network stream, a GStreamer pipeline or the standard input.

    Nothing is connected yet: that begins with the first frame asked for. So the reader gets the `SourceError`
    of a source that never comes up.

    Raises:
        UsageError: `fps` is not a number above 0, or the address is of no known form.
        DeviceError: this machine cannot decode in a process of its own.
    """
    address = read_address(spec)
    if address is None:
        raise UsageError(f"{spec!r} is no live source", expected=FORMS)
    return _connected(address, fps=fps, limits=limits, on_event=on_event)


def _connected(
    address: Address, *, fps: float, limits: LiveLimits | None, on_event: OnEvent
) -> ConnectedSource:
    check_fps(fps)
    if not can_isolate():
        raise DeviceError("live sources need a process and memory files", expected="Linux")
    if address.kind is AddressKind.PIPE:
        _check_standard_input()
    return ConnectedSource(address, fps=fps, limits=limits or LiveLimits(), on_event=on_event)


def _check_standard_input() -> None:
    expected = "a video piped in: ffmpeg ... -f mpegts - | ..."
    try:
        os.fstat(STANDARD_INPUT)
    except OSError as error:
        raise UsageError("the standard input is closed", expected=expected) from error
    if os.isatty(STANDARD_INPUT):
        raise UsageError("the standard input is a terminal", expected=expected)
