"""From a subtitle file to what was said at each frame.

Takes SubRip (`.srt`) and WebVTT (`.vtt`), told apart by their content; gives plain text with times.
Knows nothing about prompts.
"""

from __future__ import annotations

import html
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamavid.errors import UsageError

MAX_BYTES = 1 << 24  # a long film has 0.2 MB of subtitles

_ARROW = "-->"
_TIME = r"(?:([0-9]{1,4}):)?([0-5]?[0-9]):([0-5]?[0-9])[.,]([0-9]{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*{_ARROW}\s*{_TIME}(?:\s.*)?")  # cue settings may follow
# <i>, </font>, <v Name>, <00:01.000>, {\an8}; not "I <3 you".
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|<[0-9:.]+>|\{\\[^{}]*\}")
_LONG_NUMBER = re.compile(r"&#[0-9]{1000,};?")  # of no character; Python refuses to read so many digits


@dataclass(frozen=True)
class Subtitle:
    """Words on the screen, without markup, on one line."""

    start_seconds: float
    end_seconds: float
    text: str


def read_subtitles(path: Path | str) -> list[Subtitle]:
    """The subtitles of an SRT or WebVTT file, in the order of the file; blank ones are dropped.

    Raises:
        UsageError: the file is missing, too large or no subtitle file, or the times of a line are wrong.
    """
    lines = _text(Path(path)).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    is_vtt = lines[0].split(maxsplit=1)[:1] == ["WEBVTT"]
    cues = [number for number, line in enumerate(lines) if _ARROW in line]
    if not cues and not is_vtt:
        raise UsageError(
            f"{path} holds no subtitle",
            expected="SRT or WebVTT",
            next_step="Save it as one of these in UTF-8.",
        )
    found = []
    ends = [*cues, len(lines)][1:]
    for cue, following in zip(cues, ends, strict=True):
        start, end = _times(lines[cue], f"{path}, line {cue + 1}")
        body = lines[cue + 1 : following]
        text = _plain(
            _until_blank(body) if is_vtt else _without_number(body, is_last=following == len(lines))
        )
        if text:
            found.append(Subtitle(start, end, text))
    return found


def subtitle_of_each_frame(subtitles: Sequence[Subtitle], frame_times: Sequence[float]) -> list[str]:
    """What is said after each frame, "" where nothing is; several segments are joined by a space.

    The reference's rule (`load_video_input`): a segment goes to the last frame shown before the segment
    ends. One that ends before any frame is shown goes to the first frame; the reference's index wraps round
    and puts it at the end of the movie.

    Args:
        frame_times: when each frame is shown, seconds, ascending.
    """
    said: list[list[str]] = [[] for _ in frame_times]
    if said:
        for subtitle in sorted(subtitles, key=lambda subtitle: subtitle.start_seconds):
            said[max(0, bisect_left(frame_times, subtitle.end_seconds) - 1)].append(subtitle.text)
    return [" ".join(texts) for texts in said]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", expected="a subtitle file") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB", expected="a subtitle file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _times(line: str, where: str) -> tuple[float, float]:
    """Start and end of a cue, seconds."""
    match = _TIMES.fullmatch(line)
    if match is None:
        raise UsageError(f"{where}: {line.strip()[:80]!r}", expected="00:00:01,000 --> 00:00:02,000")
    fields = match.groups("0")
    start, end = _seconds(*fields[:4]), _seconds(*fields[4:])
    if end < start:
        raise UsageError(f"{where}: the subtitle ends at {end:g} s, before its start at {start:g} s")
    return start, end


def _seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{seconds}.{fraction}")


def _until_blank(body: list[str]) -> list[str]:
    """A WebVTT cue ends at a blank line; notes and the next cue's name may follow."""
    blank = next((number for number, line in enumerate(body) if not line.strip()), len(body))
    return body[:blank]


def _without_number(body: list[str], *, is_last: bool) -> list[str]:
    """An SRT cue goes on to the next cue's number, over blank lines too: files in the wild have them."""
    return body[:-1] if not is_last and body and body[-1].strip().isdecimal() else body


def _plain(body: list[str]) -> str:
    text = _LONG_NUMBER.sub("\N{REPLACEMENT CHARACTER}", _MARKUP.sub("", " ".join(body)))
    return " ".join(html.unescape(text).split())
