"""Files and folders as sources of a stream: the frames that `open_source` gives, and all is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llamavid.errors import SourceError, UsageError
from llamavid.runtime.live.opening import open_stream_source
from llamavid.runtime.live.source import EventKind, SourceCounters, SourceEvent
from llamavid.runtime.video.frames import SourceKind
from llamavid.runtime.video.sources import open_source
from tests.clips import drawn_frame, write_clip
from tests.runtime.video.test_decoding import only_child


def write_pictures(folder: Path, names: list[str]) -> Path:
    """Picture i of `names` shows `drawn_frame(i)`."""
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        Image.fromarray(drawn_frame(index)).save(folder / name)
    return folder


def test_a_folder_s_pictures_are_frames_in_natural_order(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", ["a1.png", "a2.PNG", "A9.bmp", "a10.png", "a0011.png", "b1.webp"])
    (folder / "deeper").mkdir()
    (folder / ".hidden").touch()
    with open_source(folder, fps=4) as source:
        assert (source.kind, source.expected_frames) == (SourceKind.VIDEO, 6)
        frames = list(source.frames())
    assert source.notes == []
    assert [(f.index, f.pts_seconds) for f in frames] == [(i, i / 4) for i in range(6)]
    for frame in frames[:5]:  # the sixth is not lossless
        np.testing.assert_array_equal(frame.rgb, drawn_frame(frame.index))


@pytest.mark.parametrize("isolated", [True, False])
def test_pictures_that_cannot_be_read_keep_their_place_and_are_named(tmp_path: Path, isolated: bool) -> None:
    folder = write_pictures(tmp_path / "f", [f"{i}.png" for i in range(10)])
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:80])
    (folder / "9.png").unlink()
    os.mkfifo(folder / "9.png")  # opening it must not wait
    (folder / "notes.txt").write_text("labels")
    with open_source(folder, isolated=isolated) as source:
        frames = list(source.frames())
    assert [(f.index, f.pts_seconds) for f in frames] == [(i, float(i)) for i in (0, 1, 2, 5, 6, 7, 8)]
    first, *pictures, last = source.notes
    assert first == "1 file (notes.txt) left out: not pictures by their names."
    assert [note[: len("Picture 3 was left out: '3.png'")] for note in pictures] == [
        f"Picture {i} was left out: '{i}.png'" for i in (3, 4, 9)
    ]
    assert last == "3 files (3.png, 4.png, 9.png) of 10 pictures could not be read and left out."


def test_a_folder_as_a_stream_counts_them_too(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", [f"{i}.png" for i in range(6)])
    for name in ("0.png", "3.png", "5.png"):
        (folder / name).write_bytes(b"no picture")
    events: list[SourceEvent] = []
    source = open_stream_source(folder, fps=2, on_event=events.append)
    assert [f.pts_seconds for f in source.frames()] == [0.5, 1.0, 2.0]
    assert source.counters == SourceCounters(frames=3, damaged=3)
    assert not source.is_live
    assert [(e.kind, e.at_seconds) for e in events] == [
        (EventKind.NOTE, 0.5),
        (EventKind.NOTE, 2.0),
        (EventKind.NOTE, 2.0),
        (EventKind.NOTE, 2.0),
        (EventKind.ENDED, 2.0),
    ]


@pytest.mark.parametrize("files", [[], ["a.txt"], ["broken.png"]])
def test_a_folder_without_a_picture_is_one_line(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_text("no picture")
    with pytest.raises(SourceError, match="is a folder without a picture that can be read") as caught:
        open_source(tmp_path)
    assert all(name in str(caught.value) for name in files)


def test_a_file_as_a_stream_gives_what_the_file_gives(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=60)
    source = open_stream_source(clip, fps=5)
    with open_source(clip, fps=5) as file:
        for a, b in zip(source.frames(), file.frames(), strict=True):
            assert (a.index, a.pts_seconds) == (b.index, b.pts_seconds)
            np.testing.assert_array_equal(a.rgb, b.rgb)
    assert source.counters == SourceCounters(frames=12)
    with pytest.raises(UsageError, match="were read before"):
        source.frames()


def test_closing_ends_a_reader_that_waits_for_the_decoder(tmp_path: Path) -> None:
    source = open_stream_source(write_clip(tmp_path / "a.mp4", frames=60), fps=1e6)
    frames = source.frames()
    next(frames)
    os.kill(only_child(), signal.SIGSTOP)  # it hangs
    ended = threading.Event()

    def read() -> None:
        list(frames)
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.2)
    source.close()
    assert ended.wait(1)
    reader.join()


@pytest.mark.parametrize("read", [0, 1])
def test_closing_a_file_that_nobody_reads_on_leaves_nothing(tmp_path: Path, read: int) -> None:
    source = open_stream_source(write_clip(tmp_path / "a.mp4", frames=60))
    frames = source.frames()
    for _ in range(read):
        next(frames)
    source.close()
    assert list(frames) == []
