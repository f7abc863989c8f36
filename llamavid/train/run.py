"""A run as it is asked for: a config file and overrides become a stage, settings and paths.

The file is one JSON object; `--set name=value` replaces what it says. Names are the fields of `Stage`, of
`Settings` and of `Paths`, in one flat list.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamavid.errors import UsageError
from llamavid.train.loop import Settings
from llamavid.train.stages import STAGES, Stage, with_overrides


@dataclass(frozen=True)
class Paths:
    """Where a run finds what it needs; as `open_checkpoint`, then the data."""

    checkpoint: Path
    data: tuple[Path, ...]
    vision_tower: Path | None = None
    text_tokenizer: Path | None = None
    image_processor: str | int | None = None
    feature_cache: Path | None = None  # OUTPUT/features when left out
    fps: float = 1.0


@dataclass(frozen=True)
class Run:
    stage: Stage
    settings: Settings
    paths: Paths


def run_from(stage: str, config: Path | None, overrides: Mapping[str, Any]) -> Run:
    """The run.

    Raises:
        UsageError: a name nobody knows, a value of the wrong kind, or something needed that nobody said.
    """
    asked = {**_read(config), **overrides}
    of_stage, of_settings, of_paths = (_fields(kind, asked) for kind in (Stage, Settings, Paths))
    unknown = sorted(set(asked) - {*of_stage, *of_settings, *of_paths})
    if unknown:
        raise UsageError(f"a run has no setting {unknown[0]!r}", expected=", ".join(_names()))
    for name, value in asked.items():
        _check_value(name, value)
    missing = [name for name in ("checkpoint", "data", "output") if name not in asked]
    if missing:
        raise UsageError(
            f"the run does not say {missing[0]!r}", next_step=f"Add --set {missing[0]}=... or a --config."
        )
    data = of_paths.pop("data")
    files = [data] if isinstance(data, str) else data
    paths: dict[str, Any] = {
        name: Path(value) if name in _PATH_NAMES else value for name, value in of_paths.items()
    }
    return Run(
        with_overrides(STAGES[stage], of_stage),
        Settings(**{**of_settings, "output": Path(of_settings["output"])}),
        Paths(data=tuple(Path(file) for file in files), **paths),
    )


def parsed(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs; a value that is JSON is that, any other is text. Raises `UsageError`."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is no setting", expected="name=value")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


_KINDS: dict[str, type | tuple[type, ...]] = {  # of a field's annotation
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "tuple[str, ...]": list,
    "Path": (str, Path),
    "tuple[Path, ...]": (str, Path, list),
}
_AT_LEAST_ONE = ("batch_size", "micro_batch", "max_tokens", "save_every", "steps")


def _check_value(name: str, value: Any) -> None:
    annotations = {f.name: str(f.type) for kind in (Stage, Settings, Paths) for f in dataclasses.fields(kind)}
    kind = annotations[name].removesuffix(" | None")
    wanted = _KINDS.get(kind, object)
    fits = isinstance(value, wanted) and not (isinstance(value, bool) and kind in ("int", "float"))
    if not fits and not (value is None and annotations[name].endswith("None")):
        raise UsageError(f"{name} is {value!r}", expected=kind)
    if name in _AT_LEAST_ONE and value is not None and value < 1:
        raise UsageError(f"{name} is {value}", expected="1 or more")


_PATH_NAMES = ("checkpoint", "vision_tower", "text_tokenizer", "feature_cache")


def _fields(kind: type, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: asked[field.name] for field in dataclasses.fields(kind) if field.name in asked}


def _names() -> list[str]:
    return sorted({field.name for kind in (Stage, Settings, Paths) for field in dataclasses.fields(kind)})


def _read(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{config} cannot be read ({error})", expected="one JSON object") from error
    if not isinstance(values, dict):
        raise UsageError(f"{config} holds a {type(values).__name__}", expected="one JSON object")
    return values
