"""Subtitle files as they are found, and which frame their words go to."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from llamavid.errors import UsageError
from llamavid.subtitles import MAX_BYTES, Subtitle, read_subtitles, subtitle_of_each_frame

SRT = """1
00:00:01,000 --> 00:00:02,500
Look, a <i>rabbit</i>!

2
01:00:03,000 --> 01:00:04,000 X1:10 X2:20
{\\an8}<font color="#fff">- Who?</font>
- I &lt;3 <b>you</b> &amp; me

3
01:00:05,000 --> 01:00:06,000
<i> </i>
"""
VTT = """WEBVTT - a film
Kind: captions

NOTE nothing of this
is said

STYLE
::cue { color: red }

opening
00:01.000 --> 00:02.500 line:0 position:20%
<v Roger Bingham>We are <00:01.500><c.loud>here</c>

NOTE and this neither

100:00:03.000 --> 100:00:04.000
two
lines
"""


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "subtitles"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def texts(folder: Path, content: str | bytes) -> list[str]:
    return [subtitle.text for subtitle in read_subtitles(written(folder, content))]


def test_an_srt_file_gives_times_and_plain_words_and_no_blank_cue(tmp_path: Path) -> None:
    assert read_subtitles(written(tmp_path, SRT)) == [
        Subtitle(1.0, 2.5, "Look, a rabbit!"),
        Subtitle(3603.0, 3604.0, "- Who? - I <3 you & me"),
    ]


def test_a_webvtt_file_is_known_by_its_first_line_and_its_notes_are_not_said(tmp_path: Path) -> None:
    assert read_subtitles(written(tmp_path, VTT)) == [
        Subtitle(1.0, 2.5, "We are here"),
        Subtitle(360003.0, 360004.0, "two lines"),
    ]


def test_byte_order_mark_and_line_ends_of_other_systems_change_nothing(tmp_path: Path) -> None:
    for text in (SRT, VTT):
        plain = texts(tmp_path, text)
        assert texts(tmp_path, codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode()) == plain
        assert texts(tmp_path, text.replace("\n", "\r")) == plain


def test_what_is_not_utf_8_is_read_as_latin_1(tmp_path: Path) -> None:
    cue = "1\n00:00:01,000 --> 00:00:02,000\nGrüße\n"
    assert texts(tmp_path, cue.encode("latin-1")) == texts(tmp_path, cue.encode()) == ["Grüße"]


def test_blank_lines_inside_an_srt_cue_and_none_between_two_lose_no_words(tmp_path: Path) -> None:
    content = "1\n00:00:01,000 --> 00:00:02,000\none\n\nmore\n2\n00:00:02,000 --> 00:00:03,000\n1984"
    assert texts(tmp_path, content) == ["one more", "1984"]


def test_markup_that_does_not_end_is_text(tmp_path: Path) -> None:
    unclosed = "<a" * 200_000  # read in a moment, not in minutes
    assert texts(tmp_path, f"WEBVTT\n\n00:01.000 --> 00:02.000\n{unclosed}") == [unclosed]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("1\n00:00:01,000 --> 00:00:0x,000\nHi", "line 2"),
        ("WEBVTT\n\n00:99.000 --> 01:00.000\nHi", "line 3"),
        ("1\n00:00:02,000 --> 00:00:01,000\nHi", "line 2: the subtitle ends at 1 s"),
        ("what they say\n", "holds no subtitle"),
        ("", "holds no subtitle"),
        (b"x" * (MAX_BYTES + 1), "larger than 16 MiB"),
    ],
)
def test_a_file_that_is_wrong_is_said_to_be_and_where(
    tmp_path: Path, content: str | bytes, problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        read_subtitles(written(tmp_path, content))


def test_a_missing_file_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_subtitles(tmp_path / "none.srt")


def test_a_segment_goes_to_the_last_frame_shown_before_it_ends() -> None:
    segments = [
        Subtitle(0.2, 0.9, "a"),
        Subtitle(0.9, 1.0, "b"),
        Subtitle(0.5, 1.1, "c"),
        Subtitle(8, 9, "d"),
    ]
    assert subtitle_of_each_frame(segments, [0.0, 1.0, 2.0]) == ["a b", "c", "d"]


def test_words_before_the_first_frame_are_not_said_at_the_end_of_the_movie() -> None:
    """The reference's index is then -1, which is its last frame."""
    assert subtitle_of_each_frame([Subtitle(0, 0.5, "early")], [0.5, 1.5]) == ["early", ""]


def test_without_frames_nothing_is_said() -> None:
    assert subtitle_of_each_frame([Subtitle(0, 1, "a")], []) == []


def test_a_webvtt_file_without_cues_says_nothing(tmp_path: Path) -> None:
    """It ended in a traceback. A fuzzer's third file: the two words below."""
    (tmp_path / "a.vtt").write_text("WEBVTT\n\nNOTE nothing\n")
    assert read_subtitles(tmp_path / "a.vtt") == []


def test_a_character_of_a_thousand_digits_is_none(tmp_path: Path) -> None:
    """Python reads no number of more than 4,300 digits: `html.unescape` ended in a traceback."""
    (tmp_path / "a.srt").write_text(f"1\n00:00:01,000 --> 00:00:02,000\nA&#{'9' * 5000};B &#65; &#x42;\n")
    assert [subtitle.text for subtitle in read_subtitles(tmp_path / "a.srt")] == [
        "A\N{REPLACEMENT CHARACTER}B A B"
    ]
