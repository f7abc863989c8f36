"""Pictures by OpenCV, where the system's own has what FFmpeg has not: GStreamer on a Jetson, say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from llamavid.errors import DeviceError, SourceError
from llamavid.runtime.live.connection import Decoded, Pictures


def camera_pictures_by_opencv(device: str, *, opened: ExitStack) -> Pictures:
    if find_spec("cv2") is None:
        given = "this PyAV reads no cameras (its FFmpeg is without V4L2), and OpenCV is not installed"
        raise DeviceError(given, next_step="pip install opencv-python-headless.")
    import cv2

    number = device.removeprefix("/dev/video")  # OpenCV's V4L2 takes numbers, and not every release names
    which = int(number) if number.isdecimal() else device
    return _opened(cv2.VideoCapture(which, cv2.CAP_V4L2), device, opened)


def has_gstreamer() -> bool:
    if find_spec("cv2") is None:
        return False
    import cv2

    return any("GStreamer" in line and "YES" in line for line in cv2.getBuildInformation().splitlines())


def pipeline_pictures_by_opencv(pipeline: str, name: str, *, opened: ExitStack) -> Pictures:
    """pipeline: ends in caps of format BGR and an appsink."""
    import cv2

    return _opened(cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER), name, opened)


def _opened(capture: Any, name: str, opened: ExitStack) -> Pictures:
    opened.callback(capture.release)
    if not capture.isOpened():
        raise SourceError(f"{name!r} cannot be opened by OpenCV")
    return _OpenCVPictures(capture)


class _OpenCVPictures:
    """OpenCV's own times are those of a file, if any: frames are placed when they come."""

    frame_seconds = 0.04

    def __init__(self, capture: Any) -> None:
        self._capture, self.damaged, self.notes = capture, 0, list[str]()

    def __iter__(self) -> Iterator[Decoded]:
        while True:
            is_there, bgr = self._capture.read()
            if not is_there:
                return
            height, width, _ = bgr.shape
            yield Decoded(None, width, height, "raw", True, partial(_rgb, bgr))


def _rgb(bgr: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bgr[:, :, ::-1])
