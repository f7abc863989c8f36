"""One connection to a live source, in the decoder's process: pictures in, kept frames out.

The other end is `llamavid.runtime.live.link`. A connection ends with its process: FFmpeg starts afresh each
time, and what a long night of reconnecting would leave behind goes with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from llamavid.errors import SourceError
from llamavid.runtime.live.address import AddressKind
from llamavid.runtime.live.timeline import Gate, Timeline
from llamavid.runtime.video.frames import check_size
from llamavid.runtime.yuv import Picture


class FinalError(SourceError):
    """Trying again cannot help."""


@dataclass(frozen=True)
class Decoded:
    """One decoded picture, not yet converted.

    pts_seconds: the stream's own time, from any zero; None where it has none.
    is_whole: nothing of it was lost on the way.
    picture: makes it ready to be handed over, RGB or planes.
    """

    pts_seconds: float | None
    width: int
    height: int
    codec: str
    is_whole: bool
    picture: Callable[[], Picture]


class Pictures(Protocol):
    """What an input gives. `damaged`: pictures so far that could not be decoded at all."""

    frame_seconds: float
    damaged: int
    notes: list[str]

    def __iter__(self) -> Iterator[Decoded]: ...


class Teller(Protocol):
    """The child's way to say something: `llamavid.runtime.video.decode_child`."""

    def tell(self, what: str, **fields: Any) -> None: ...
    def hand_over(self, picture: Picture, **fields: Any) -> None: ...


def connect(request: dict[str, Any], teller: Teller) -> None:
    """Reads until the source ends.

    Raises:
        SourceError: it cannot be reached, or breaks.
    """
    kind = AddressKind(request["kind"])
    is_live = kind is not AddressKind.PIPE
    gate, counts, told_at = Gate(request["fps"]), [0, 0, 0], time.monotonic()
    look: tuple[int, int, str] | None = None
    with ExitStack() as opened:
        pictures = _pictures(kind, request, teller, opened)
        teller.tell("opened")
        timeline, broken = Timeline(is_live=is_live, frame_seconds=pictures.frame_seconds), 0
        for decoded in pictures:
            now = time.monotonic()
            broken += not decoded.is_whole
            seconds = timeline.seconds(decoded.pts_seconds, now=now)
            counts = [pictures.damaged + broken, timeline.backwards, timeline.jumps]
            if look != (decoded.width, decoded.height, decoded.codec):
                look = (decoded.width, decoded.height, decoded.codec)
                teller.tell("look", width=decoded.width, height=decoded.height, codec=decoded.codec)
            if gate.keeps(seconds):
                check_size(request["name"], decoded.width, decoded.height)
                teller.hand_over(decoded.picture(), seconds=seconds, counts=counts, notes=pictures.notes)
            elif now - told_at > request["alive_seconds"]:
                teller.tell("alive", counts=counts, notes=pictures.notes)
                told_at = now
        counts = [pictures.damaged + broken, timeline.backwards, timeline.jumps]
        teller.tell("end", counts=counts, notes=pictures.notes)


def _pictures(kind: AddressKind, request: dict[str, Any], teller: Teller, opened: ExitStack) -> Pictures:
    # Only what is needed is loaded.
    if kind is AddressKind.PIPELINE:
        from llamavid.runtime.live.pipelines import pipeline_pictures

        return pipeline_pictures(request["target"], request["name"], opened=opened)
    from llamavid.runtime.live.ffmpeg import camera_pictures, network_pictures, pipe_pictures

    if kind is AddressKind.CAMERA:
        return camera_pictures(request["target"], opened=opened)
    if kind is AddressKind.NETWORK:
        seconds = request["connect_seconds"]
        return network_pictures(request["target"], request["name"], seconds=seconds, opened=opened)

    def tell_wait(seconds: float) -> None:
        teller.tell("waits", seconds=seconds)

    return pipe_pictures(request["pipe"], request["name"], on_wait=tell_wait, opened=opened)
