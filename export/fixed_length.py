"""A named dimension of a graph's boundary becomes a number, in the file's own bytes.

TensorRT writes new rows into a cache in place only where its length is a number when the graph is parsed,
while ONNX Runtime takes the same file with any length. A device that builds has no `onnx`, and needs none:

Note [Same length]
    A dimension is written as `0a SIZE 12 LENGTH name` (onnx.TensorShapeProto: field 1, whose field 2 is
    `dim_param`). `0a SIZE 08 number` says `dim_value` instead, and a varint may be as long as one likes, its
    high bits zero. So the number is written as long as the name was, and no size around it changes.
"""

from __future__ import annotations

from pathlib import Path


def graph_text(file: Path, fixed: dict[str, int]) -> bytes:
    """The graph in `file`, with the dimensions of these names as these numbers. Weights stay outside."""
    text = file.read_bytes()
    for name, length in fixed.items():
        text = text.replace(_named(name), _numbered(name, length))
    return text


def _named(name: str) -> bytes:
    written = name.encode()
    return bytes([0x0A, len(written) + 2, 0x12, len(written)]) + written


def _numbered(name: str, length: int) -> bytes:
    """See Note [Same length]."""
    digits = len(name.encode()) + 1  # of seven bits each
    assert 0 < length < 1 << 7 * digits, f"{length} is too long for the name {name}"
    number = [(length >> 7 * i) & 0x7F | 0x80 for i in range(digits)]
    number[-1] &= 0x7F
    return bytes([0x0A, digits + 1, 0x08, *number])
