"""scales.json: how large activations get, as steps of an eight-bit format.

    scales = load_scales(path)
    scales.require(checkpoint=..., format="int8")
    scales.graphs["vision"].steps["blocks.3.mlp.fc1"].scale

Written by calibration, or by export's own scan; read by export, which turns each
entry into a QuantizeLinear. An entry is named after the module whose weight its
tensor is multiplied with. Knows nothing about models: names are only compared.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from llamavid.config import dataclass_from_json
from llamavid.errors import ScalesError
from llamavid.replacing import replacing

FORMAT_VERSION = 1
_SIZE_LIMIT = 16 << 20  # bytes; ours are some 50 kB
_AGAIN = "Make it again: llamavid export --precision int8 --scan CLIP, or llamavid calibrate."


@dataclass(frozen=True)
class Step:
    """One tensor's range."""

    largest: float  # magnitude that was seen
    scale: float  # of one level; the format's last level stands for scale * 127 (int8) or scale * 448 (fp8)


@dataclass(frozen=True)
class GraphScales:
    """Of one graph."""

    steps: dict[str, Step]  # by module name, `blocks.3.mlp.fc1`
    kept: tuple[str, ...] = ()  # modules that are not quantized, on purpose


@dataclass(frozen=True)
class Scales:
    """The whole file."""

    format_version: int
    format: str  # what the steps are of: int8 or fp8
    observer: str  # what chose them, for people
    checkpoint: str  # fingerprint of the checkpoint, sha256
    clips: str  # sha256 of what was watched
    frames: int  # how many were
    graphs: dict[str, GraphScales]

    def __post_init__(self) -> None:
        """Raises `ValueError` naming the first entry that cannot be."""
        for name, digest in (("checkpoint", self.checkpoint), ("clips", self.clips)):
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"{name} is {digest!r:.80}, not a sha256")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}, not above 0")
        for graph, scales in self.graphs.items():
            for name, step in scales.steps.items():
                for field, value in (("largest", step.largest), ("scale", step.scale)):
                    if not 0 < value < math.inf:
                        raise ValueError(f"{graph}: {field} of {name} is {value}, not a number above 0")

    def require(self, *, checkpoint: str, format: str) -> None:
        """Raises `ScalesError` when they are of another checkpoint or for another format."""
        if self.checkpoint != checkpoint:
            raise ScalesError(
                f"the scales were made for checkpoint {self.checkpoint[:12]}...",
                expected=f"{checkpoint[:12]}..., the one that is exported",
                next_step=_AGAIN,
            )
        if self.format != format:
            raise ScalesError(f"the scales are for {self.format}", expected=format, next_step=_AGAIN)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def load_scales(file: Path) -> Scales:
    """Reads and checks the file.

    Raises:
        ScalesError: it is missing, damaged, of another version, or holds a scale that cannot be.
    """
    text = _text(file)
    try:
        data = json.loads(text)
        version = data["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScalesError(f"{file} is not scales ({error!r})", next_step=_AGAIN) from error
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise ScalesError(
            f"{file} has format {version!r:.40}",
            expected=f"{FORMAT_VERSION}",
            next_step="Upgrade llamavid." if newer else _AGAIN,
        )
    try:
        return dataclass_from_json(Scales, data)
    except (ValueError, RecursionError) as error:
        raise ScalesError(f"{file} is damaged ({error})", next_step=_AGAIN) from error


def save_scales(scales: Scales, file: Path) -> None:
    """Written beside and renamed. Raises `ScalesError` when the place cannot be written."""
    try:
        with replacing(file) as beside:
            beside.write_text(scales.to_json(), encoding="utf-8")
    except OSError as error:
        raise ScalesError(
            f"{file} cannot be written ({error.strerror})", next_step="Choose another place."
        ) from error


def _text(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > _SIZE_LIMIT:
            raise ScalesError(f"{file} has {size} bytes", expected=f"at most {_SIZE_LIMIT}", next_step=_AGAIN)
        return file.read_bytes()
    except OSError as error:
        raise ScalesError(f"{file} cannot be read ({error.strerror})", next_step=_AGAIN) from error
