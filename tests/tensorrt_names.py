"""Which of six released TensorRT bindings have which name: what `tensorrt_names.json` says, unfolded.

There a row "xxxx--" is of names that the first four versions have.
"""

from __future__ import annotations

import json
from pathlib import Path

_TABLE = json.loads(Path(__file__).with_suffix(".json").read_text())
VERSIONS: list[str] = _TABLE["versions"]
ALL = frozenset(VERSIONS)

# Class -> name -> the versions that have it. "__top__" are the names of the module itself.
CLASSES: dict[str, dict[str, frozenset[str]]] = {
    kind: {
        name: frozenset(v for v, mark in zip(VERSIONS, marks, strict=True) if mark == "x")
        for marks, names in rows.items()
        for name in names.split()
    }
    for kind, rows in _TABLE["classes"].items()
}
TOP = CLASSES.pop("__top__")


def names_of(kind: str, version: str) -> set[str]:
    """Those that a class has in a version."""
    return {name for name, versions in CLASSES[kind].items() if version in versions}
