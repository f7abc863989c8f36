"""Quantities as people type them: `2G` of memory, `10m` of time."""

from __future__ import annotations

import re
from collections.abc import Mapping

import click

_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


class _Quantity(click.ParamType):
    """A number above 0 and a unit."""

    units: Mapping[str, float]
    pattern: str
    expected: str

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        if isinstance(value, float):  # a default
            return value
        match = re.fullmatch(self.pattern, str(value).strip().lower())
        number = float(match[1]) * self.units[match[2]] if match else 0.0
        if number <= 0:
            self.fail(f"{value!r} is not {self.expected}", parameter, context)
        return number


class ByteSize(_Quantity):
    """`512M`, `2G` or a number of bytes -> bytes; K, M, G and T are powers of 1024."""

    name = "size"
    units = _BYTES
    pattern = r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgt]?)(?:i?b)?"
    expected = "a size like 512M or 2G"


class Duration(_Quantity):
    """`2s`, `10m`, `1.5h` or a number of seconds -> seconds."""

    name = "duration"
    units = _SECONDS
    pattern = r"(\d{1,9}(?:\.\d{1,9})?) ?([smh]?)"
    expected = "a duration like 2s or 10m"
