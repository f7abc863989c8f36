"""What a profile says, as JSON: dataclasses, written by one machine and read by another, which checks them.

Milliseconds throughout. Holds no path and no host's name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from llamavid.config import dataclass_from_json
from llamavid.errors import UsageError
from llamavid.runtime.profile.figures import Figure

FORMAT_VERSION = 1
_LIMIT = 4 << 20  # bytes; ours are some 10 kB

TEXT_FREE, TEXT_RELATED, TOTAL = "text-free", "text-related", "total"
# What people read for a session's stages, which are named after graphs: the words of Table 9.
STAGE_WORDS = {
    "decode_video": "decode",
    "pixels": "pixels",
    "vision": "encoder",
    "content": "content",
    "context": TEXT_RELATED,
    "sequence": "sequence",
    "prefill": "prefill",
    "decode": "answer",
}


@dataclass(frozen=True)
class Conditions:
    """What a figure holds under.

    Args:
        alike: what two profiles must have in common to be compared: machine, precision, batch, bundle.
        told: what may differ, and is printed: versions, clocks, temperatures.
        parity: what vouches for the numbers that were computed, by stage.
        marks: what speaks against the figures: a machine under load, a clock that fell.
    """

    alike: dict[str, str]
    told: dict[str, str]
    parity: dict[str, str]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class VideoFigures:
    """`decode` and `pixels` of a frame, as the files were read."""

    name: str
    size: str  # "640 x 360"
    frames: int
    asked: int
    open: Figure  # a file, to its first frame
    decode: Figure
    pixels: Figure


@dataclass(frozen=True)
class FrameFigures:
    """A frame through the modules of Table 9, `batch` frames a run; and text-free, text-related, total."""

    batch: int
    modules: dict[str, Figure]
    split: str  # how decoder and context were told apart


@dataclass(frozen=True)
class LanguageFigures:
    """A prompt of so many tokens, and one token more."""

    prompt_tokens: int
    new_tokens: int
    prefill: Figure  # the whole prompt
    decode: Figure  # a token

    @property
    def prefill_tokens_a_second(self) -> float:
        return 1000 * self.prompt_tokens / self.prefill.median

    @property
    def decode_tokens_a_second(self) -> float:
        return 1000 / self.decode.median


@dataclass(frozen=True)
class QuestionFigures:
    """Two questions about one video, as a user asks them."""

    frames: int
    prompt_tokens: int
    watch: Figure
    first: Figure  # watching included
    second: Figure
    first_token: Figure  # of a question about a watched video
    stages: dict[str, dict[str, float]]  # of `first` and `second`, medians


@dataclass(frozen=True)
class Reached:
    """One module against the floor of this machine."""

    module: str
    batch: int  # frames of a run; 1 for the language model
    precision: str
    operations: float  # a frame, or a run
    bytes: float
    measured: float
    floor: float | None  # None where no ceiling of the type was measured
    bound: str

    @property
    def share(self) -> float | None:
        """Of the ceiling: 1.0 is as fast as the counted work can be."""
        return self.floor / self.measured if self.floor is not None and self.measured else None


@dataclass(frozen=True)
class Projection:
    """Not measured: a frame (encoder to context) and a token on another machine, by its published ceilings.

    `at_least` is the floor; `at_this_share` what it would take at the share of the ceilings that is reached
    here. None where the machine does not multiply a type of the bundle's.
    """

    device: str
    origin: str
    batch: int
    frame_at_least: float | None
    frame_at_this_share: float | None
    token_at_least: float | None
    token_at_this_share: float | None


@dataclass(frozen=True)
class Roofline:
    """Measured ceilings, and what is made of them."""

    products: dict[str, float]  # operations a second, by type
    bandwidth: float  # bytes a second
    origin: str
    reached: tuple[Reached, ...]
    projected: tuple[Projection, ...]


@dataclass(frozen=True)
class Profile:
    """One run of `llamavid profile`."""

    format_version: int
    conditions: Conditions
    video: VideoFigures
    frames: tuple[FrameFigures, ...]
    language: LanguageFigures
    questions: QuestionFigures
    roofline: Roofline
    notes: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def read_profile(file: Path) -> Profile:
    """Raises `UsageError` where it is missing, or no profile of this format."""
    again = "Make it with: llamavid profile --json > FILE."
    try:
        if file.stat().st_size > _LIMIT:
            raise ValueError(f"{file.stat().st_size} bytes")
        data = json.loads(file.read_bytes(), parse_constant=_refused)
        version = data["format_version"] if isinstance(data, dict) and "format_version" in data else None
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version!r:.40}, not {FORMAT_VERSION}")
        profile = dataclass_from_json(Profile, data)
        _check(profile)
        return profile
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})", next_step=again) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no profile ({error})", next_step=again) from error


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _check(profile: Profile) -> None:
    """Raises `ValueError` for a batch twice, or a number that is none."""
    batches = [each.batch for each in profile.frames]
    if len(set(batches)) != len(batches) or any(batch < 1 for batch in batches):
        raise ValueError(f"batches {batches}")
    for reached in profile.roofline.reached:
        if not 0 <= reached.measured < math.inf:
            raise ValueError(f"{reached.module} measured {reached.measured}")
