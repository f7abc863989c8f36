"""decord2 as the reader: the same frames at the same times, and what it reads wrongly is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from llamavid.errors import DeviceError, SourceError
from llamavid.runtime.video.frames import TURNED
from llamavid.runtime.video.sources import Reader, open_source
from llamavid.runtime.video.videos import UNEVEN
from tests.clips import HALF_TURN, MIRRORED, QUARTER_ANTICLOCKWISE, QUARTER_CLOCKWISE, sample_clip, write_clip

decord_is_here = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="decord2's wheels are for Linux here"
)
EVERY_FRAME = 1e6


@decord_is_here
@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("clip", ["bikes", "bigbuckbunny", "odd size", "ntsc", "half turn", "uneven"])
def test_decord_gives_the_frames_and_times_that_pyav_gives(tmp_path: Path, clip: str, isolated: bool) -> None:
    fps = 1.0
    if clip == "odd size":
        path = write_clip(tmp_path / "a.mkv", frames=40, size=(63, 47), codec="ffv1", pix_fmt="bgr0")
    elif clip == "ntsc":
        path = write_clip(tmp_path / "a.mp4", frames=70, fps=29.97, codec="libx264", pix_fmt="yuv420p")
    elif clip == "half turn":
        path = write_clip(tmp_path / "a.mp4", display=HALF_TURN)
    elif clip == "uneven":
        path, fps = write_clip(tmp_path / "a.mp4", frames=6, pts_ms=[0, 40, 80, 500, 540, 1500]), EVERY_FRAME
    else:
        path = sample_clip(clip)
    with (
        open_source(path, fps=fps, isolated=isolated) as ours,
        open_source(path, fps=fps, isolated=isolated, reader=Reader.DECORD) as theirs,
    ):
        for a, b in zip(ours.frames(), theirs.frames(), strict=True):
            assert (a.index, a.pts_seconds) == (b.index, pytest.approx(b.pts_seconds, abs=1e-4))
            np.testing.assert_array_equal(a.rgb, b.rgb)
    assert (ours.step, ours.expected_frames, ours.notes) == (
        theirs.step,
        theirs.expected_frames,
        theirs.notes,
    )
    assert theirs.notes == ([TURNED] if clip == "half turn" else [UNEVEN] if clip == "uneven" else [])


@decord_is_here
@pytest.mark.parametrize("display", [QUARTER_CLOCKWISE, QUARTER_ANTICLOCKWISE, MIRRORED])
def test_a_clip_that_decord_turns_into_garbage_is_refused(tmp_path: Path, display: tuple) -> None:
    clip = write_clip(tmp_path / "phone.mp4", display=display)
    with pytest.raises(SourceError, match="is stored turned or mirrored, as decord cannot read it"):
        open_source(clip, reader=Reader.DECORD)
    open_source(clip).close()


@decord_is_here
def test_what_is_no_video_is_refused_in_pyav_s_words(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video at all\n" * 100)
    said = []
    for reader in Reader:
        with pytest.raises(SourceError) as caught:
            open_source(tmp_path / "a.mp4", reader=reader)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_without_decord_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamavid.runtime.video import sources

    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"decord2 is not installed. pip install 'llamavid\[decord\]'"):
        open_source(tmp_path / "a.mp4", reader=Reader.DECORD)
