"""Protocol buffers as they are on the wire: bytes to fields and back, without a schema.

    for field in fields(message): ...
    written([text_field(1, "x"), number_field(3, 16)])

A field keeps its bytes, so that what is read and written again is the same. Knows no message.
Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5  # how a field is written
_FIXED = {LONG: 8, SHORT: 4}  # bytes
_LONGEST_VARINT = 10  # bytes


class Field(NamedTuple):
    """One field of a message."""

    number: int
    kind: int
    data: bytes  # of BYTES the content, else as written


def fields(message: bytes) -> Iterator[Field]:
    """In the order in which they were written. Raises `ValueError` where it is no message."""
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        kind, start = tag & 7, at
        if kind == BYTES:
            size, start = _number(message, at)
        elif kind == VARINT:
            size = _number(message, at)[1] - at
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"byte {at} is no protocol buffer field")
        at = start + size
        if at > len(message):
            raise ValueError("a protocol buffer field is longer than its message")
        yield Field(tag >> 3, kind, message[start:at])


def written(message: Iterable[Field]) -> bytes:
    """The fields as a message."""
    parts: list[bytes] = []
    for field in message:
        parts.append(_varint(field.number << 3 | field.kind))
        if field.kind == BYTES:
            parts.append(_varint(len(field.data)))
        parts.append(field.data)
    return b"".join(parts)


def bytes_field(number: int, content: bytes) -> Field:
    """Bytes, or a message that is written."""
    return Field(number, BYTES, content)


def text_field(number: int, text: str) -> Field:
    return bytes_field(number, text.encode())


def number_field(number: int, value: int) -> Field:
    return Field(number, VARINT, _varint(value))


def number_in(field: Field) -> int:
    """What a VARINT field says. Raises `ValueError` where it is none."""
    return _number(field.data, 0)[0]


def _number(message: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends."""
    value = 0
    for place, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError(f"byte {at} begins no protocol buffer number")


def _varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
