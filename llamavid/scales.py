"""scales.json: what calibration decided, graph by graph; beside it `scales.npz` with its vectors.

    calibration = load_calibration(file)                      llamavid.calibrated
    calibration.scales.graphs["vision"].steps["blocks.3.mlp.fc1"].scale

Written by calibration, or by export's own scan; read by export. An entry is named after the module whose
weight its tensor is multiplied with, as graphs name it. Knows nothing about models: names are only compared.

Note [Migration]
    Where one channel of an input is far larger than the others, its step is theirs too. A migration divides
    the input by a vector, one number a channel, and multiplies the weight's columns by it: the product
    is what it was, and both sides round better (SmoothQuant, arXiv 2211.10438; AWQ, arXiv 2306.00978). The
    division costs nothing, since what makes the input takes it: a normalization's gain and bias, or the
    rows of the matrix before, where nothing but a sum or an elementwise product lies between.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamavid.config import dataclass_from_json
from llamavid.errors import ScalesError

FORMAT_VERSION = 2
FORMATS = ("int8", "fp8", "int4")
BLOCKS = (32, 64, 128)
_LEVELS = {"int8": 127, "fp8": 448}  # the last one of an activation's format
_FLOAT32 = (2.0**-126, 2.0**128)  # below, it loses digits or is 0; from the second on it is infinite
_SIZE_LIMIT = 16 << 20  # bytes; a 7B model's are some 100 kB
AGAIN = "Make it again: llamavid calibrate, or llamavid export --precision int8 --scan CLIP."


@dataclass(frozen=True)
class Step:
    """One tensor's range."""

    largest: float  # magnitude that the last level stands for
    scale: float  # of one level: largest / 127 (int8), largest / 448 (fp8)


@dataclass(frozen=True)
class Divided:
    """A tensor whose rows, from `first_row` on, are divided by a migration's vector."""

    name: str  # with `.weight` or `.bias`, or a parameter's own: `blocks.3.attn.v_bias`
    first_row: int = 0


@dataclass(frozen=True)
class Migration:
    """Note [Migration]."""

    vector: str  # its name in scales.npz; float32 [K], all above 0
    divided: tuple[Divided, ...]  # what makes the input of ...
    multiplied: tuple[str, ...]  # ... these modules, in whose weights column k is multiplied


@dataclass(frozen=True)
class GraphScales:
    """Of one graph.

    Args:
        format: int8, fp8 or int4.
        steps: by module; of int8 and fp8, for inputs as they are after migration.
        kept: modules that are not rounded, on purpose.
        block: of int4, rows of a column that share a scale.
        importance: of int4, module -> vector in scales.npz [K], the mean square of each migrated channel.
        cache: of the language model, `model.layers.0.self_attn` -> largest magnitude of a key or value. A
            key's is the largest norm of a pair that rotates together, which holds at every position.
        migrated_cache: the same where values are divided by a migration, of the weights as they then are.
        keys, values: the two apart, values as the migrated weights make them. Files made before have neither.
    """

    format: str
    steps: dict[str, Step] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    migrations: tuple[Migration, ...] = ()
    block: int | None = None
    importance: dict[str, str] = field(default_factory=dict)
    cache: dict[str, float] = field(default_factory=dict)
    migrated_cache: dict[str, float] = field(default_factory=dict)
    keys: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def check(self, graph: str) -> None:
        """Raises `ValueError` naming the first entry that cannot be."""
        if self.format not in FORMATS:
            raise ValueError(f"{graph}: format is {self.format!r:.40}, not {', '.join(FORMATS)}")
        if (self.format == "int4") != (self.block in BLOCKS):
            raise ValueError(f"{graph}: block is {self.block!r:.40} with format {self.format}")
        if self.steps and self.format not in _LEVELS:
            raise ValueError(f"{graph}: {self.format} has steps of activations")
        for name, step in self.steps.items():
            _above_zero(graph, f"largest of {name}", step.largest)
            _above_zero(graph, f"scale of {name}", step.scale)
            if not math.isclose(step.scale * _LEVELS[self.format], step.largest, rel_tol=1e-4):
                raise ValueError(f"{graph}: scale of {name} is {step.scale}, its largest {step.largest}")
        for ranges in (self.cache, self.migrated_cache, self.keys, self.values):
            for name, largest in ranges.items():
                _above_zero(graph, f"the cache's largest of {name}", largest)
        if twice := sorted({*self.steps} & {*self.kept}):
            raise ValueError(f"{graph}: {twice[0]} has a step and is kept")
        columns = [module for migration in self.migrations for module in migration.multiplied]
        if len(set(columns)) < len(columns):
            raise ValueError(f"{graph}: a module's input is migrated twice")
        if any(divided.first_row < 0 for one in self.migrations for divided in one.divided):
            raise ValueError(f"{graph}: a migration begins above the first row")


@dataclass(frozen=True)
class Scales:
    """The whole file."""

    format_version: int
    observer: str  # what chose the steps, for people
    checkpoint: str  # fingerprint of the checkpoint, sha256
    clips: str  # sha256 of what was watched
    frames: int  # how many were
    vectors: str  # sha256 of scales.npz; empty: there is none
    graphs: dict[str, GraphScales]

    def __post_init__(self) -> None:
        """Raises `ValueError` naming the first entry that cannot be."""
        for name, digest in (("checkpoint", self.checkpoint), ("clips", self.clips)):
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"{name} is {digest!r:.80}, not a sha256")
        if not re.fullmatch("([0-9a-f]{64})?", self.vectors):
            raise ValueError(f"vectors is {self.vectors!r:.80}, not a sha256")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}, not above 0")
        for graph, scales in self.graphs.items():
            scales.check(graph)

    def require(self, *, checkpoint: str) -> None:
        """Raises `ScalesError` when they are of another checkpoint."""
        if self.checkpoint != checkpoint:
            raise ScalesError(
                f"the scales were made for checkpoint {self.checkpoint[:12]}...",
                expected=f"{checkpoint[:12]}..., the one that is exported",
                next_step=AGAIN,
            )

    def require_format(self, graph: str, format: str, *, block: int | None = None) -> None:
        """Raises `ScalesError` when that graph has none, or they are for another format or block."""
        found = self.graphs.get(graph)
        if found is None or (found.format, found.block) != (format, block):
            given, asked = _named(found.format, found.block) if found else "nothing", _named(format, block)
            raise ScalesError(f"the scales have {given} for graph {graph}", expected=asked, next_step=AGAIN)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def load_scales(file: Path) -> Scales:
    """Reads and checks the file; its vectors stay where they are.

    Raises:
        ScalesError: it is missing, damaged, of another version, or holds a scale that cannot be.
    """
    try:
        data: Any = json.loads(_text(file))
        version = data["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScalesError(f"{file} is not scales ({error!r})", next_step=AGAIN) from error
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise ScalesError(
            f"{file} has format {version!r:.40}",
            expected=f"{FORMAT_VERSION}",
            next_step="Upgrade llamavid." if newer else AGAIN,
        )
    try:
        return dataclass_from_json(Scales, data)
    except (ValueError, RecursionError) as error:
        raise ScalesError(f"{file} is damaged ({error})", next_step=AGAIN) from error


def _named(format: str, block: int | None) -> str:
    return f"{format} in blocks of {block}" if block else format


def _above_zero(graph: str, what: str, value: float) -> None:
    if not _FLOAT32[0] <= value < _FLOAT32[1]:
        raise ValueError(f"{graph}: {what} is {value}, not a float32 number above 0")


def _text(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > _SIZE_LIMIT:
            raise ScalesError(f"{file} has {size} bytes", expected=f"at most {_SIZE_LIMIT}", next_step=AGAIN)
        return file.read_bytes()
    except OSError as error:
        raise ScalesError(f"{file} cannot be read ({error.strerror})", next_step=AGAIN) from error
