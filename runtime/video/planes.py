"""A decoded frame's own planes, where they become the RGB that FFmpeg would make of the frame.

Takes a frame of PyAV; gives a `Yuv420` over its memory, or None. Knows nothing of files or rotation.

Note [Frames as planes]
    For most files no picture in RGB is made: the planes are prepared as they are. Only where the result is
    the same to the bit, by Note [YUV to RGB] in `llamavid.runtime.yuv`: 8 bits, 4:2:0, of even height, on
    x86, and by FFmpeg's numbers (ISO/IEC 23091-2) in colours whose conversion is known. A reserved number
    there is an error of FFmpeg's, which is left to it.
"""

from __future__ import annotations

import platform

import numpy as np
from av.video.frame import VideoFrame

from llamavid.runtime.yuv import Yuv420, YuvMatrix

IS_X86 = platform.machine() in ("x86_64", "AMD64")  # elsewhere FFmpeg converts in another way

MATRICES = {
    1: YuvMatrix.BT709,
    2: YuvMatrix.BT601,  # not said
    5: YuvMatrix.BT601,  # its older form, of 625 lines
    6: YuvMatrix.BT601,
}
FULL_RANGE = {0: False, 1: False, 2: True}  # 0: not said
PRIMARIES = (1, 2, 5, 6)  # like the transfer functions, no part of the conversion
TRANSFERS = (1, 2, 6, 13)


def yuv420_of(frame: VideoFrame) -> Yuv420 | None:
    """The frame's memory, read-only, or None where its RGB is FFmpeg's to make; Note [Frames as planes]."""
    matrix, full_range = MATRICES.get(frame.colorspace), FULL_RANGE.get(frame.color_range)
    usual = frame.color_primaries in PRIMARIES and frame.color_trc in TRANSFERS
    if not IS_X86 or frame.height % 2 or matrix is None or full_range is None or not usual:
        return None
    if frame.format.name not in ("yuv420p", "yuvj420p") or min(plane.line_size for plane in frame.planes) < 1:
        return None
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        rows.flags.writeable = False  # the decoder may need it for the frames that follow
        planes.append(rows[:, : plane.width])
    return Yuv420(tuple(planes), matrix, full_range or frame.format.name == "yuvj420p")
