"""GStreamer pipelines: pictures where Python has GStreamer, one sentence where it has not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from llamavid.errors import DeviceError, SourceError
from llamavid.runtime.live.link import LiveLimits
from llamavid.runtime.live.opening import open_live
from llamavid.runtime.live.source import SourceCounters
from llamavid.runtime.video.decoding import can_isolate

LOAD = "import gi; gi.require_version('GstApp', '1.0'); from gi.repository import Gst, GstApp"
HAS_GSTREAMER = subprocess.run([sys.executable, "-c", LOAD], capture_output=True).returncode == 0
with_gstreamer = pytest.mark.skipif(not HAS_GSTREAMER, reason="needs python3-gi and GStreamer's modules")

pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs memory files: Linux")
QUICK = LiveLimits(give_up_seconds=15, stall_seconds=2, first_pause_seconds=0.1)


@pytest.mark.skipif(HAS_GSTREAMER, reason="GStreamer is here")
def test_without_gstreamer_it_is_said_at_once_what_to_install() -> None:
    with pytest.raises(DeviceError, match=r"GStreamer is not to be had from Python here. Install it"):
        list(open_live("gst: videotestsrc ! appsink", limits=QUICK).frames())


@with_gstreamer
@pytest.mark.parametrize("end", [" ! appsink", " ! appsink drop=true", ""])
def test_a_pipeline_s_pictures_come_as_it_makes_them(end: str) -> None:
    red = "videotestsrc is-live=true pattern=red ! video/x-raw,width=33,height=21,framerate=25/1"
    source = open_live(f"gst: {red}{end}", fps=1e6, limits=QUICK)
    frames = source.frames()
    seen = [next(frames) for _ in range(5)]
    source.close()
    for frame in seen:  # rows of 33 pixels are padded by GStreamer
        np.testing.assert_array_equal(frame.rgb, np.broadcast_to(np.uint8([255, 0, 0]), (21, 33, 3)))
    assert source.counters == SourceCounters(frames=5)


@with_gstreamer
def test_a_pipeline_that_ends_is_built_again() -> None:
    source = open_live("gst: videotestsrc num-buffers=3 ! appsink", fps=1e6, limits=QUICK)
    for _ in source.frames():
        if source.counters.reconnects == 1:
            source.close()
    assert source.counters.reconnects == 1


@with_gstreamer
def test_a_pipeline_that_cannot_be_built_is_one_line_at_once_without_its_password() -> None:
    source = open_live("gst: nosuchthing location=rtsp://harry:s3cret@host ! appsink", limits=QUICK)
    with pytest.raises(SourceError, match="the pipeline cannot be built") as caught:
        list(source.frames())
    assert "s3cret" not in str(caught.value)
    assert source.counters == SourceCounters()
