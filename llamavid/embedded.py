"""The model inside the package: a tiny trained bundle, a clip of the world that it knows, questions about it.

    tiny/bundle/       answers where no BUNDLE is given
    tiny/sample.mp4    a few seconds of the little world
    tiny/sample.json   [{"question": ..., "answer": ...}, ...] about them
    tiny/release/      the checkpoint that the bundle was made of, in its release layout

Gives places and words; opens no bundle. A source checkout has no bundle before `make tiny`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from llamavid.errors import BundleError

HOME = Path(__file__).parent / "tiny"
WHAT_IT_KNOWS = "it knows the colored shapes of its little world and nothing else"


class SampleQuestion(NamedTuple):
    """A question about the sample clip and its right answer."""

    question: str
    answer: str


def default_bundle() -> Path:
    """The embedded bundle's folder. Raises `BundleError` where there is none."""
    return _found("bundle", "the embedded bundle", "Pass a BUNDLE, or run `make tiny` in the source.")


def embedded_checkpoint() -> Path:
    """Its checkpoint's folder. Raises `BundleError` where there is none."""
    return _found(
        "release/checkpoint",
        "the embedded checkpoint",
        "Pass a CHECKPOINT, or run `make tiny` in the source.",
    )


def sample_clip() -> Path:
    """A clip that the embedded bundle can be asked about. Raises `BundleError` where there is none."""
    return _found("sample.mp4", "the sample clip", "Run `make tiny` in the source.")


def sample_questions() -> list[SampleQuestion]:
    """About the sample clip. Raises `BundleError` where there are none."""
    file = _found("sample.json", "the sample questions", "Run `make tiny` in the source.")
    items = json.loads(file.read_text(encoding="utf-8"))
    return [SampleQuestion(item["question"], item["answer"]) for item in items]


def _found(name: str, what: str, next_step: str) -> Path:
    path = HOME / name
    if not path.exists():
        raise BundleError(f"{path} is missing", expected=what, next_step=next_step)
    return path
