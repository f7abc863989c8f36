"""Pictures of a GStreamer pipeline: by GStreamer's own Python module, or by an OpenCV built with GStreamer.

A pipeline is a program that the user writes: what it reads and starts is the user's affair. It runs in the
decoder's process with the same limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import numpy as np

from llamavid.errors import DeviceError, SourceError
from llamavid.runtime.live.connection import Decoded, FinalError, Pictures
from llamavid.runtime.live.opencv import has_gstreamer, pipeline_pictures_by_opencv

SINK = "appsink name=frames max-buffers=2 drop=true sync=false"
PULL_NANOSECONDS = 100_000_000

MISSING = "GStreamer is not to be had from Python here"
INSTALL = (
    "Install it for this Python: python3-gi and gir1.2-gst-plugins-base-1.0, or an OpenCV with GStreamer "
    "(JetPack's has it, pip's has not)."
)


def pipeline_pictures(pipeline: str, name: str, *, opened: ExitStack) -> Pictures:
    """pipeline: without its appsink.

    Raises:
        DeviceError: neither way is installed.
        SourceError: the pipeline cannot be built or started.
    """
    gst = _gstreamer()
    if gst is not None:
        return _GStreamerPictures(
            gst, f"{pipeline} ! videoconvert ! video/x-raw,format=RGB ! {SINK}", name, opened
        )
    if has_gstreamer():
        bgr = f"{pipeline} ! videoconvert ! video/x-raw,format=BGR ! {SINK}"
        return pipeline_pictures_by_opencv(bgr, name, opened=opened)
    raise DeviceError(MISSING, next_step=INSTALL)


def _gstreamer() -> Any | None:
    """The module `Gst`, started; None where it is not installed."""
    if find_spec("gi") is None:
        return None
    import gi

    try:
        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401  (GstApp gives the sink its methods)
    except (ImportError, ValueError):
        return None
    Gst.init(None)
    return Gst


class _GStreamerPictures:
    frame_seconds = 0.04

    def __init__(self, gst: Any, pipeline: str, name: str, opened: ExitStack) -> None:
        self._gst, self._name, self.damaged, self.notes = gst, name, 0, list[str]()
        try:
            self._pipeline = gst.parse_launch(pipeline)
        except Exception as error:  # GLib.Error, of a module that is known only here
            raise FinalError(f"the pipeline cannot be built ({getattr(error, 'message', error)})") from error
        self._sink, self._bus = self._pipeline.get_by_name("frames"), self._pipeline.get_bus()
        opened.callback(self._pipeline.set_state, gst.State.NULL)
        if self._pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
            raise self._error() or SourceError(f"{name!r} cannot be started")

    def __iter__(self) -> Iterator[Decoded]:
        while True:
            sample = self._sink.try_pull_sample(PULL_NANOSECONDS)
            if sample is not None:
                yield self._picture(sample)
            elif (error := self._error()) is not None:
                raise error
            elif self._sink.is_eos():
                return

    def _picture(self, sample: Any) -> Decoded:
        shape, buffer = sample.get_caps().get_structure(0), sample.get_buffer()
        width, height = shape.get_value("width"), shape.get_value("height")
        rows = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8).reshape(height, -1)
        rgb = rows[:, : 3 * width].reshape(height, width, 3)  # rows are padded to four bytes
        has_time = buffer.pts != self._gst.CLOCK_TIME_NONE
        return Decoded(buffer.pts / 1e9 if has_time else None, width, height, "raw", True, rgb.copy)

    def _error(self) -> SourceError | None:
        message = self._bus.pop_filtered(self._gst.MessageType.ERROR)
        if message is None:
            return None
        error, _ = message.parse_error()
        return SourceError(f"{self._name!r} failed ({error.message})")
