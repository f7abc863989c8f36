"""An error is one line that can be shown, whatever a file puts into it."""

from __future__ import annotations

import pytest

from llamavid.errors import MAX_PART, SourceError


@pytest.mark.parametrize("words", ["two\nlines", "\x1b[2J", "\r", "a\0b", "\u2028", "\ud800"], ids=ascii)
def test_what_a_terminal_would_obey_is_spelled_out(words: str) -> None:
    """Names from a manifest came with their line ends: one mistake, two lines."""
    error = SourceError(f"it names {words}", expected=words, next_step="Look again.")
    assert str(error).isprintable()
    assert ascii(words)[1:-1] in str(error)
    assert error.given == f"it names {words}"


def test_what_has_no_end_is_cut_in_its_middle() -> None:
    """A manifest that is not text was quoted whole: megabytes on one line."""
    error = SourceError("start " + "x" * 10**6 + " end", expected="less")
    assert str(error).startswith("start x")
    assert " end; expected less" in str(error)
    assert len(str(error)) < MAX_PART + 50


def test_other_alphabets_are_shown_as_they_are() -> None:
    assert str(SourceError("'видео.mp4' is 空")) == "'видео.mp4' is 空"
