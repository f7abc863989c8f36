"""Where frames come from: which ones, when they are, how they look; and what happens with bad files."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
import sys
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llamavid.errors import SourceError, UsageError
from llamavid.runtime.video import videos
from llamavid.runtime.video.frames import TURNED, Frame, SourceKind
from llamavid.runtime.video.sources import open_source as open_isolated_source
from tests.clips import (
    HALF_TURN,
    MIRRORED,
    QUARTER_ANTICLOCKWISE,
    QUARTER_CLOCKWISE,
    UPSIDE_DOWN_MIRRORED,
    drawn_frame,
    sample_clip,
    write_clip,
    write_sound,
)

# The decoders themselves, in this process; that another process gives the same is in test_decoding.py.
open_source = partial(open_isolated_source, isolated=False)

EVERY_FRAME = 1e6  # an fps above any clip's: step 1
WITH_B_FRAMES = {"qp": "4", "x264-params": "b-adapt=0:bframes=2:scenecut=0"}


def read(path: Path, *, fps: float = EVERY_FRAME) -> tuple[list[Frame], list[str]]:
    with open_source(path, fps=fps) as source:
        return list(source.frames()), source.notes


def refusal(path: Path | str) -> str:
    """The one line that a user sees when `path` cannot be read."""
    with pytest.raises(SourceError) as caught, open_source(path) as source:
        list(source.frames())
    line = str(caught.value)
    assert "\n" not in line
    assert repr(os.fspath(path)) in line
    assert caught.value.expected
    assert caught.value.next_step
    return line


# Which frames, and when


@pytest.mark.parametrize(
    ("clip_fps", "fps", "step"),
    [
        (25, 1, 25),
        (25, 2, 12),  # 12.5 goes to the even side
        (15, 2, 8),  # 7.5 too
        (Fraction(30000, 1001), 1, 30),
        (0.4, 1, 1),  # the reference's step would be 0
        (25, 100, 1),
        (25, 5e-324, videos.MAX_FRAMES),  # the quotient overflows
    ],
)
def test_every_step_th_frame_is_kept(tmp_path: Path, clip_fps: float, fps: float, step: int) -> None:
    with open_source(write_clip(tmp_path / "a.mp4", frames=60, fps=clip_fps), fps=fps) as source:
        frames = list(source.frames())
    assert source.kind is SourceKind.VIDEO
    assert source.average_fps == pytest.approx(float(clip_fps))
    assert source.step == step
    assert [f.index for f in frames] == list(range(0, 60, step))
    assert source.expected_frames == len(frames)
    assert source.notes == []


def test_frames_are_counted_and_given_in_display_order(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=30, options=WITH_B_FRAMES)
    frames, _ = read(clip)
    assert len(frames) == 30
    for frame in frames:
        assert frame.rgb.dtype == np.uint8
        assert frame.rgb.flags.c_contiguous
        np.testing.assert_allclose(frame.rgb, drawn_frame(frame.index), atol=2)  # nearly lossless


@pytest.mark.parametrize(
    ("suffix", "precision"),
    [(".mp4", 1e-9), (".mkv", 1e-3), (".ts", 1e-4), (".avi", 1e-9)],  # mkv: milliseconds; ts: 1/90000 s
)
def test_times_of_a_constant_rate_are_index_over_rate(tmp_path: Path, suffix: str, precision: float) -> None:
    clip = write_clip(
        tmp_path / f"a{suffix}", fps=Fraction(30000, 1001), codec="libx264", pix_fmt="yuv420p", options={}
    )
    frames, notes = read(clip)
    assert [f.index for f in frames] == list(range(25))
    assert [f.pts_seconds for f in frames] == pytest.approx(
        [i * 1001 / 30000 for i in range(25)], abs=precision
    )
    assert notes == []


def test_times_of_a_stream_without_any_are_index_over_rate(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.h264", fps=50)
    with open_source(clip, fps=EVERY_FRAME) as source:
        times = [f.pts_seconds for f in source.frames()]
    assert times == pytest.approx([i / source.average_fps for i in range(25)])
    assert source.expected_frames is None


def test_a_variable_rate_keeps_its_own_times_and_is_noted(tmp_path: Path) -> None:
    times_ms = [0, 40, 80, 500, 540, 1500]
    frames, notes = read(write_clip(tmp_path / "a.mp4", frames=6, pts_ms=times_ms))
    assert [f.pts_seconds * 1000 for f in frames] == pytest.approx(times_ms)
    assert notes == [videos.UNEVEN]


def test_real_h264_gives_the_reference_s_frames() -> None:
    with open_source(sample_clip("bikes")) as source:
        assert source.expected_frames == 10
        frames = list(source.frames())
    assert [f.index for f in frames] == list(range(0, 250, 25))
    assert [f.pts_seconds for f in frames] == [float(second) for second in range(10)]
    assert {f.rgb.shape for f in frames} == {(272, 640, 3)}


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])  # a .ts of one frame has no average rate
@pytest.mark.parametrize("frames", [1, 3])
def test_a_clip_shorter_than_one_step_gives_its_first_frame(tmp_path: Path, suffix: str, frames: int) -> None:
    kept, notes = read(write_clip(tmp_path / f"a{suffix}", frames=frames), fps=1)
    assert [f.index for f in kept] == [0]
    assert notes == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_an_fps_that_is_no_number_above_zero_is_a_usage_error(tmp_path: Path, fps: float) -> None:
    with pytest.raises(UsageError, match=f"fps is {fps}; expected a number above 0"):
        open_source(write_clip(tmp_path / "a.mp4"), fps=fps)


# How frames look


@pytest.mark.parametrize(
    ("display", "turn"),
    [
        (QUARTER_CLOCKWISE, lambda rgb: np.rot90(rgb, -1)),
        (HALF_TURN, lambda rgb: np.rot90(rgb, 2)),
        (QUARTER_ANTICLOCKWISE, lambda rgb: np.rot90(rgb, 1)),
        (MIRRORED, lambda rgb: rgb[:, ::-1]),
        (UPSIDE_DOWN_MIRRORED, lambda rgb: rgb[::-1]),
    ],
)
def test_a_turned_video_is_put_upright_and_noted_once(tmp_path: Path, display, turn) -> None:
    frames, notes = read(write_clip(tmp_path / "phone.mp4", frames=3, display=display))
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb, turn(drawn_frame(frame.index)))
        assert frame.rgb.flags.c_contiguous
    assert notes == [TURNED]


@pytest.mark.parametrize("size", [(1, 1), (63, 47), (2, 300)])
def test_odd_sizes_are_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    frames, _ = read(write_clip(tmp_path / "a.mkv", frames=2, size=size, codec="ffv1", pix_fmt="bgr0"))
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb, drawn_frame(frame.index, size))


def test_a_size_that_changes_midway_is_the_frame_s_own(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "small.ts", frames=5, size=(64, 48))
    large = write_clip(tmp_path / "large.ts", frames=5, size=(96, 80))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames, _ = read(both)
    assert [f.rgb.shape[:2] for f in frames] == [(48, 64)] * 5 + [(80, 96)] * 5


def test_a_stream_that_begins_midway_is_left_out_and_noted(tmp_path: Path) -> None:
    """Two recordings of a receiver, joined. PyAV stumbles over streams that were not there when it opened
    the file, after the last frame: a mutated .ts ended in a traceback."""
    parts = [
        write_clip(
            tmp_path / f"{pid}.ts",
            codec="libx264",
            pix_fmt="yuv420p",
            muxer_options={"mpegts_start_pid": str(pid), "mpegts_pmt_start_pid": str(pid + 100)},
        )
        for pid in (256, 600)
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, notes = read(tmp_path / "both.ts")
    assert len(frames) == 25
    assert notes == [videos.LATE_STREAMS]


# How a source is used


def test_frames_come_one_by_one_and_none_is_held_back(tmp_path: Path) -> None:
    with open_source(write_clip(tmp_path / "a.mp4", frames=100), fps=EVERY_FRAME) as source:
        held = [weakref.ref(frame) for frame in source.frames()]
        assert len(held) == 100
        assert sum(ref() is not None for ref in held) <= 1


READ_AND_PRINT_PEAK_MEMORY = """
import gc, resource, sys
from llamavid.runtime.video.sources import open_source
gc.disable()  # what only the collector can free counts as held
with open_source(sys.argv[1], fps=1e6, isolated=False) as source:
    for frame in source.frames():
        if frame.index in (30, 399):
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=400, size=(640, 480), options={"preset": "ultrafast"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READ_AND_PRINT_PEAK_MEMORY, str(clip)]
    early, late = map(
        int, subprocess.run(command, env=environment, capture_output=True, check=True).stdout.split()
    )
    assert late - early < 0.1 * early  # one frame in ten, held, would be 40%


def test_frames_can_be_read_once(tmp_path: Path) -> None:
    with open_source(write_clip(tmp_path / "a.mp4")) as source:
        list(source.frames())
        with pytest.raises(UsageError, match="were read before this"):
            next(source.frames())


def test_reading_on_after_close_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    with open_source(write_clip(tmp_path / "a.mp4"), fps=EVERY_FRAME) as source:
        frames = source.frames()
        next(frames)
    with pytest.raises(UsageError, match="were closed before this"):
        list(frames)
    source.close()  # twice is fine


def test_a_closed_source_leaves_no_file_open(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    text = tmp_path / "a.txt"
    text.write_text("no video")
    before = set(os.listdir("/dev/fd"))
    with open_source(clip) as source:
        next(source.frames())
    refusal(text)
    assert set(os.listdir("/dev/fd")) <= before


def test_frames_can_cross_to_another_process(tmp_path: Path) -> None:
    (frame,), _ = read(write_clip(tmp_path / "a.mp4", frames=1))
    copy = pickle.loads(pickle.dumps(frame))
    assert (copy.index, copy.pts_seconds) == (frame.index, frame.pts_seconds)
    np.testing.assert_array_equal(copy.rgb, frame.rgb)


def test_sound_beside_the_video_changes_nothing(tmp_path: Path) -> None:
    frames, notes = read(write_clip(tmp_path / "a.mp4", audio=True))
    assert [f.index for f in frames] == list(range(25))
    assert notes == []


def test_a_title_in_an_unknown_encoding_changes_nothing(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", title="café")
    latin = clip.read_bytes().replace("café".encode(), b"caf\xe9\xe9")
    clip.write_bytes(latin)
    assert len(read(clip)[0]) == 25


# Pictures


def read_picture(path: Path) -> tuple[np.ndarray, list[str]]:
    with open_source(path) as source:
        (frame,) = source.frames()
    assert source.kind is SourceKind.PICTURE
    assert (source.step, source.expected_frames) == (1, 1)
    assert (frame.index, frame.pts_seconds) == (0, 0.0)
    assert (frame.rgb.dtype, frame.rgb.ndim, frame.rgb.shape[2]) == (np.uint8, 3, 3)
    return frame.rgb, source.notes


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm", ".webp", ".gif"])
def test_a_picture_is_known_by_its_content(tmp_path: Path, suffix: str) -> None:
    drawn = Image.fromarray(drawn_frame(0)).quantize(16).convert("RGB")  # few enough colours for a GIF
    path = tmp_path / f"a{suffix}"
    drawn.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    path = path.rename(tmp_path / "a.mp4")
    rgb, notes = read_picture(path)
    np.testing.assert_array_equal(rgb, np.asarray(drawn))
    assert notes == []


def test_a_picture_of_one_pixel_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    rgb, _ = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb, [[[1, 2, 3]]])


def test_a_photo_held_sideways_is_put_upright_and_noted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(drawn_frame(0)).save(tmp_path / "a.png", exif=exif)
    rgb, notes = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb, np.rot90(drawn_frame(0), -1))
    assert notes == [TURNED]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white_and_noted(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.convert(mode).save(tmp_path / "a.png")
    rgb, notes = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb, [[[0, 0, 0], [255, 255, 255]]])
    assert notes == ["It is transparent in parts: these are shown on white."]


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    Image.fromarray(drawn_frame(0)).convert("RGBA").save(tmp_path / "a.png")
    rgb, notes = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb, drawn_frame(0))
    assert notes == []


def test_sixteen_bits_keep_their_high_byte(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x12FF, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    rgb, _ = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(rgb[0, :, 0], [0, 0x12, 0xFF])


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    rgb, _ = read_picture(tmp_path / "a.jpg")
    np.testing.assert_allclose(rgb[4, 4], [255, 0, 0], atol=3)  # JPEG rounds


def test_samples_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.5, 2000.0]], np.float32)).save(tmp_path / "a.tiff")
    assert "neither of 8 nor of 16 bits" in refusal(tmp_path / "a.tiff")


def animation(path: Path) -> Path:
    first, *others = (Image.fromarray(drawn_frame(i)) for i in range(4))
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_an_animation_is_a_video(tmp_path: Path, suffix: str) -> None:
    with open_source(animation(tmp_path / f"a{suffix}"), fps=EVERY_FRAME) as source:
        times = [f.pts_seconds for f in source.frames()]
    assert source.kind is SourceKind.VIDEO
    assert times == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("suffix", [".webp", ".tiff"])
def test_of_other_picture_series_the_first_is_taken_and_noted(tmp_path: Path, suffix: str) -> None:
    _, notes = read_picture(animation(tmp_path / f"a{suffix}"))
    assert notes == ["It holds several pictures: the first one is taken."]


# Files that are refused


@contextmanager
def without_root() -> Iterator[None]:
    """Permissions do not bind root: do the work as nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    clip.chmod(0)
    with without_root():
        assert "cannot be opened (Permission denied)" in refusal(clip)


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is an empty file" in refusal(tmp_path / "empty.mp4")
    assert "is not a file" in refusal(Path("/dev/null"))
    assert "is not a file" in refusal(tmp_path / "pipe.mp4")
    assert "No such file or directory" in refusal(tmp_path / "missing.mp4")
    assert "null" in refusal("a\0.mp4")


@pytest.mark.parametrize("address", ["http://localhost/a.mp4", "rtsp://localhost/a", "file:///etc/passwd"])
def test_addresses_are_refused(address: str) -> None:
    assert "is an address" in refusal(address)


@pytest.mark.parametrize("name", ["clip%03d.mp4", "concat:x.mp4", "file:x.mp4", "-", "a.m3u8", "a.txt"])
def test_a_name_is_only_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(write_clip(tmp_path / "known.mp4", frames=2), name)
    for decoy in ("clip000.mp4", "clip001.mp4", "x.mp4"):
        write_clip(tmp_path / decoy, frames=9)
    assert len(read(Path(name))[0]) == 2


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nfile://{clip}\n#EXT-X-ENDLIST\n",
    "a.ffconcat": "ffconcat version 1.0\nfile {clip.name}\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n",
    "a.mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<Representation><BaseURL>{clip}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "a.txt": "plain text, which FFmpeg would play as a video of a terminal\n" * 40,
    "a.srt": "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 5,
    "a.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{clip}"/></svg>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_text_is_refused_and_no_playlist_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    clip = write_clip(tmp_path / "clip.mp4")
    Path(name).write_text(PLAYLISTS[name].format(clip=clip))
    assert "is of no known kind, or damaged" in refusal(name)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    assert "holds no video, only audio" in refusal(write_sound(tmp_path / "a.m4a"))
    assert "holds no video, only audio" in refusal(write_sound(tmp_path / "a.wav", codec="pcm_s16le"))


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    song = write_sound(tmp_path / "a.mp3", codec="libmp3lame")
    Image.new("RGB", (16, 16)).save(tmp_path / "cover.png")
    apic = b"\0image/png\0\x03\0" + (tmp_path / "cover.png").read_bytes()
    frame = b"APIC" + struct.pack(">IH", len(apic), 0) + apic
    sevens = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))  # ID3v2 sizes: 7 bits a byte
    song.write_bytes(b"ID3\x03\0\0" + sevens + frame + song.read_bytes())
    assert "holds no video, only audio" in refusal(song)


def test_a_clip_of_no_frames_is_refused(tmp_path: Path) -> None:
    mp4 = write_clip(tmp_path / "a.mp4", frames=0)
    avi = write_clip(tmp_path / "a.avi", frames=0, codec="mpeg4", pix_fmt="yuv420p")
    assert "holds no video" in refusal(mp4)
    assert "holds no frame that can be decoded" in refusal(avi)


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    clip.write_bytes(clip.read_bytes().replace(b"avc1", b"zzzz"))
    assert "codec that this FFmpeg does not decode" in refusal(clip)


def test_a_heif_photo_is_refused_rather_than_shown_as_one_of_its_tiles(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    clip.write_bytes(clip.read_bytes().replace(b"ftypisom", b"ftypheic", 1))
    assert "HEIF" in refusal(clip)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels in a hundred bytes."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (16_385, 1)])
def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    assert "is too large" in refusal(tmp_path / "bomb.png")


def test_a_video_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", frames=1, size=(16_400, 2), codec="ffv1", pix_fmt="bgr0")
    assert "is too large (16400 x 2 pixels)" in refusal(clip)


# Damage


def garble(path: Path, start: float, stop: float) -> Path:
    """Seeded noise over the part from `start` to `stop`, fractions of the file."""
    data = bytearray(path.read_bytes())
    begin, end = int(len(data) * start), int(len(data) * stop)
    data[begin:end] = np.random.default_rng(0).bytes(end - begin)
    path.write_bytes(data)
    return path


def cut(path: Path, at: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * at)])
    return path


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    assert "no known kind, or damaged" in refusal(cut(write_clip(tmp_path / "a.mp4"), 0.6))


def test_noise_with_a_video_s_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + np.random.default_rng(0).bytes(4000))
    refusal(tmp_path / "a.mp4")


def test_garbage_in_the_middle_is_passed_over_and_noted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = garble(write_clip(tmp_path / "a.mp4", frames=100, options={"qp": "4", "g": "10"}), 0.4, 0.6)
    frames, notes = read(clip)
    intact = [np.allclose(f.rgb, drawn_frame(round(f.pts_seconds * 25)), atol=2) for f in frames]
    assert all(intact[:35])
    assert all(intact[-25:])  # the times still tell which frames these are
    assert any("It is damaged" in note for note in notes)
    assert any("its header speaks of 100 frames" in note for note in notes)
    assert capfd.readouterr() == ("", "")  # FFmpeg's own words stay with it


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".ts"])
def test_a_video_cut_short_is_read_to_the_cut_and_noted(tmp_path: Path, suffix: str) -> None:
    clip = write_clip(tmp_path / f"a{suffix}", frames=60)
    frames, notes = read(cut(clip, 0.5))
    assert 15 < len(frames) < 45
    if suffix != ".ts":  # which has no header to tell how long it was
        assert any("is incomplete: its header speaks of 60 frames" in note for note in notes)


def test_damage_without_end_is_an_error_that_says_where(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=videos.MAX_BARREN_PACKETS + 200, size=(16, 16))
    assert "is damaged: nothing can be decoded after" in refusal(garble(clip, 0.02, 0.97))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".png", ".jpg", ".webp", ".tiff"])
def test_a_file_with_flipped_bytes_is_read_or_refused_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix in (".mp4", ".mkv", ".ts"):
        write_clip(path, frames=4)
    else:
        Image.fromarray(drawn_frame(0)).save(path)
    intact, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(50):
        data = bytearray(intact)
        for at in random.integers(0, min(len(data), 1500), 8):  # where the headers are
            data[at] = random.integers(256)
        path.write_bytes(data)
        with suppress(SourceError):
            read(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif"])
def test_a_picture_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(drawn_frame(0, (640, 480))).save(tmp_path / f"a{suffix}")
    assert "is a picture that cannot be decoded" in refusal(cut(tmp_path / f"a{suffix}", 0.5))
