"""A video as a source of frames: decoded one by one, with the stream's own times.

Note [Which frames]
    The published code's rule: step = max(1, round(average_fps / fps)), and the frames 0, step, 2 * step, ...
    counted in display order. `round` is Python's, which takes a half to the even side. A frame's time is what
    the stream says, which is index / average_fps where the frame rate is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from typing import BinaryIO, cast

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from llamavid.errors import SourceError
from llamavid.runtime.video.frames import (
    MAX_PIXELS,
    TURNED,
    Frame,
    Source,
    SourceKind,
    check_size,
    unreadable,
)
from llamavid.runtime.video.planes import yuv420_of
from llamavid.runtime.yuv import Picture

# FFmpeg's demuxers. The audio ones let the error say that there is no video.
CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,ivf,yuv4mpegpipe,h264,hevc,obu,gif,apng,mp3,wav,flac,aac"
)
# First words of the MP4 pictures that Pillow cannot read. FFmpeg would show one tile of them as a video.
STILL_BRANDS = ("heic", "heix", "heim", "heis", "mif1", "avif")

FFMPEG_ERRORS = (av.FFmpegError, OSError)  # OSError: PyAV has no class for every errno
STARVED = (MemoryError, BlockingIOError)  # two of them: no memory, no thread. Not to be taken for damage.

MAX_FRAMES = 24 * 3600 * 60  # a day at 60 frames a second
MAX_BARREN_PACKETS = 2000  # in a row without a frame; a sound stream cut before a key frame may have 300

UPRIGHT = (1, 0, 0, 1)  # a display matrix that changes nothing

CONVERT = "Convert it to MP4; playlists are not followed."
UNEVEN = (
    "Its frames are not evenly spaced in time: they are chosen by index, as the reference does; "
    "the times are the stream's own."
)
LATE_STREAMS = "Further streams begin in the middle of it: they are left out."


def video_source(
    file: BinaryIO,
    name: str,
    *,
    fps: float,
    opened: ExitStack,
    on_decoded: Callable[[], None] = lambda: None,
) -> Source:
    """`opened` receives what has to be closed. `on_decoded` is called for each frame, kept or not."""
    file.seek(0)
    container = opened.enter_context(_open_container(file, name))
    if container.metadata.get("major_brand") in STILL_BRANDS:
        raise unreadable(name, "is a HEIF or AVIF picture", next_step="Convert it to JPEG or PNG.")
    stream = chosen_stream(container, name)
    average_fps = float(stream.average_rate or stream.guessed_rate or 25)  # one frame alone has no average
    stated = _stated_frames(container, stream, average_fps)
    # A tiny fps makes the quotient infinite; any step past the last frame keeps frame 0 alone.
    step = max(1, round(min(average_fps / fps, float(MAX_FRAMES))))
    notes: list[str] = []
    pictures = _decoded(container, stream, name, stated, notes, on_decoded)
    kept = _kept_frames(pictures, stream, name, average_fps, step, notes)
    opened.callback(kept.close)  # before the container: a generator must not read a closed one
    first = next(kept, None)
    if first is None:
        raise unreadable(name, "holds no frame that can be decoded")
    expected = -(-stated // step) if stated else None
    return Source(name, SourceKind.VIDEO, average_fps, step, expected, notes, chain([first], kept))


def first_picture_matrix(file: BinaryIO, name: str) -> tuple[int, int, int, int]:
    """How its first picture is turned when it is shown: signs as `_display_matrix` gives them.

    Raises:
        SourceError: the file is refused, or nothing can be decoded.
    """
    with ExitStack() as opened:
        file.seek(0)
        container = opened.enter_context(_open_container(file, name))
        stream = chosen_stream(container, name)
        pictures = _decoded(container, stream, name, None, [], lambda: None)
        opened.callback(pictures.close)
        first = next(pictures, None)
        if first is None:
            raise unreadable(name, "holds no frame that can be decoded")
        return _display_matrix(first)


def out_of_memory(name: str) -> SourceError:
    problem = "asks for more memory than decoding may take: it is very large, or damaged"
    return unreadable(name, problem, next_step="Scale it down first, or convert it to MP4.")


def _open_container(file: BinaryIO, name: str) -> InputContainer:
    try:
        return av.open(
            file,
            mode="r",
            options={"max_pixels": str(MAX_PIXELS)},  # opening decodes a little already
            container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": ""},
            metadata_errors="replace",  # titles come in any encoding
            buffer_size=2**18,
        )
    except STARVED as error:
        raise out_of_memory(name) from error
    except FFMPEG_ERRORS as error:
        raise unreadable(name, "is of no known kind, or damaged", next_step=CONVERT) from error


def chosen_stream(container: InputContainer, name: str, *, thread_type: str = "AUTO") -> VideoStream:
    """The stream that a player would choose, ready to decode. Cover art of music is none."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        others = sorted({s.type for s in container.streams} - {"video"})
        raise unreadable(name, "holds no video" + (f", only {' and '.join(others)}" if others else ""))
    best = container.streams.best("video")
    stream = next((s for s in videos if s is best), videos[0])
    if stream.codec_context is None:
        raise unreadable(name, "holds video in a codec that this FFmpeg does not decode")
    check_size(name, stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may grow on the way
    stream.thread_type = thread_type
    return stream


def _stated_frames(container: InputContainer, stream: VideoStream, average_fps: float) -> int | None:
    """How many frames the header speaks of; None when it does not."""
    if stream.frames > 0:
        return stream.frames
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) / av.time_base
    return max(1, round(seconds * average_fps)) if seconds > 0 else None


def _decoded(
    container: InputContainer,
    stream: VideoStream,
    name: str,
    stated: int | None,
    notes: list[str],
    on_decoded: Callable[[], None],
) -> Generator[VideoFrame, None, None]:
    """Every frame in display order. Damage is passed over and noted, unless it does not end."""
    decoded = damaged = barren = 0
    for packet in _packets(container, stream, name, notes):
        try:
            pictures = stream.decode(packet)
        except STARVED as error:
            raise out_of_memory(name) from error
        except FFMPEG_ERRORS:
            pictures, damaged = [], damaged + 1
        barren = 0 if pictures else barren + 1
        if barren > MAX_BARREN_PACKETS or decoded > MAX_FRAMES:
            problem = "is damaged: nothing can be decoded" if barren else "is too long: it goes on"
            raise unreadable(name, f"{problem} after {decoded} frames", next_step="Cut it there.")
        decoded += len(pictures)
        damaged += sum(picture.is_corrupt for picture in pictures)
        for picture in pictures:
            on_decoded()
            yield picture
    if damaged:
        notes.append(f"It is damaged: {damaged} frames were skipped or could be decoded only in part.")
    # A duration is rarely exact, and tells nothing of the number of frames where they are uneven.
    if stated and decoded < 0.9 * stated and (stream.frames or UNEVEN not in notes):
        notes.append(f"It is incomplete: its header speaks of {stated} frames, {decoded} could be decoded.")


def _packets(
    container: InputContainer, stream: VideoStream, name: str, notes: list[str]
) -> Iterator[Packet | None]:
    """The stream's packets; the last one, empty or None, makes the decoder give what it still holds."""
    try:
        yield from container.demux(stream)
    except (
        IndexError
    ):  # PyAV, at the very end, when it goes over the streams and there are more than it knows
        notes.append(LATE_STREAMS)
    except STARVED as error:
        raise out_of_memory(name) from error
    except FFMPEG_ERRORS as error:
        notes.append(f"It cannot be read to its end ({error.strerror}).")
        yield None


def _kept_frames(
    pictures: Iterator[VideoFrame],
    stream: VideoStream,
    name: str,
    average_fps: float,
    step: int,
    notes: list[str],
) -> Generator[Frame, None, None]:
    """Note [Which frames]. Only kept frames are converted."""
    # AVI holds no presentation times: FFmpeg makes some up, which go back and forth where there are B-frames.
    time_base = None if stream.container.format.name == "avi" else stream.time_base
    upright = Upright(notes)
    start, before = stream.start_time, 0.0
    for index, picture in enumerate(pictures):
        if time_base is None or picture.pts is None:
            seconds = index / average_fps
        else:
            start = picture.pts if start is None else start
            seconds = float((picture.pts - start) * time_base)
        if index and abs((seconds - before) * average_fps - 1) > 0.5 and UNEVEN not in notes:
            notes.append(UNEVEN)
        before = seconds
        if index % step == 0:
            check_size(name, picture.width, picture.height)
            try:
                kept = upright(picture)
            except STARVED as error:
                raise out_of_memory(name) from error
            except FFMPEG_ERRORS as error:
                raise unreadable(name, f"has a frame {index} without an RGB form ({error})") from error
            yield Frame(index, seconds, kept)


class Upright:
    """Decoded frames as a player shows them: their own planes by Note [Frames as planes], or RGB.

    It converts by FFmpeg's `format` filter, as decord does, the reference's reader. `VideoFrame.to_ndarray`
    would interpolate colour in another way: other pixels at odd sizes and at 10 bits.

    A frame whose side data was read is in a reference cycle with it, and stays in memory until the garbage
    collector comes by: too late on a small board. So the side data is read when the rotation changes only.
    """

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes
        self._graph_for = lru_cache(maxsize=1)(_rgb_graph)  # its threads start once, not for each frame
        self._rotation: int | None = None
        self._matrix = UPRIGHT

    def __call__(self, picture: VideoFrame) -> Picture:
        if picture.rotation != self._rotation:
            self._rotation, self._matrix = picture.rotation, _display_matrix(picture)
            if self._matrix != UPRIGHT and TURNED not in self._notes:
                self._notes.append(TURNED)
        yuv = yuv420_of(picture) if self._matrix == UPRIGHT else None
        return _turned(self.rgb(picture), *self._matrix) if yuv is None else yuv

    def rgb(self, picture: VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], not turned."""
        colours = (picture.colorspace, picture.color_range)
        graph = self._graph_for(picture.width, picture.height, picture.format.name, colours)
        graph.vpush(picture)
        return np.array(graph.vpull().to_ndarray())  # a copy: FFmpeg pads rows and uses buffers again


def _rgb_graph(width: int, height: int, pix_fmt: str, colours: tuple[int, int]) -> Graph:
    """colours: matrix and range, not said here but by each frame. One that says none would be taken for one
    of the frame before, so that a graph is for frames of equal colours.
    """
    graph = Graph()
    buffer = graph.add_buffer(width=width, height=height, format=VideoFormat(pix_fmt), time_base=Fraction(1))
    graph.link_nodes(buffer, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    return graph


def _display_matrix(picture: VideoFrame) -> tuple[int, int, int, int]:
    """Signs a, b, c, d of x' = a x + c y, y' = b x + d y, to the nearest quarter turn."""
    matrix = cast("Mapping[str, bytes]", picture.side_data).get("DISPLAYMATRIX")  # PyAV's stub has few keys
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()  # [3, 3] by rows, fixed point
    if abs(a) < abs(b):
        return (0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0)
    return (1 if a > 0 else -1, 0, 0, 1 if d > 0 else -1)


def _turned(rgb: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """`rgb` through a matrix of `_display_matrix`."""
    turned = rgb[::d, ::a] if a else rgb.swapaxes(0, 1)[::b, ::c]
    return np.ascontiguousarray(turned)
