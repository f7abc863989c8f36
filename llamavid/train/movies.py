"""Movies in training: feature files as `llamavid features` writes them, with their subtitles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llamavid.feature_file import FORMAT

MOVIE_SUFFIX = ".safetensors"


def movie_subtitles(file: Path) -> tuple[str, ...]:
    """What is said after each frame, one string a frame; reads the header alone.

    Raises:
        ValueError: the file holds no stored features.
    """
    try:
        with safe_open(file, "pt") as opened:
            words: Mapping[str, str] = opened.metadata() or {}
            shape = opened.get_slice("features").get_shape()
        subtitles: Any = json.loads(words["subtitles"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{file} holds no stored features ({error})") from error
    listed = isinstance(subtitles, list) and all(isinstance(said, str) for said in subtitles)
    if words.get("format") != FORMAT or not listed or len(subtitles) != shape[0]:
        raise ValueError(f"{file} holds no stored features with a subtitle for each frame")
    return tuple(subtitles)
