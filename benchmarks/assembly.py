"""One prompt's sequence at Vicuna-7B's width: gathered in one pass, beside joining the frame tokens first.

Before, context and content tokens were concatenated to rows, and the rows copied into the sequence. Now each
row is copied once, by the compiled code or by NumPy. Processor time, which a busy machine does not stretch.

python -m benchmarks.assembly
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.runtime.assembly import Array, FrameTokens, assemble
from llamavid.tokenizer import SLOT_ID

WIDTH, VOCABULARY = 4096, 4000
TEXT = 60  # tokens around the frames
FRAMES = (600, 3600)
DTYPES = (("float32", "float32"), ("float16", "float16"), ("float16", "float32"))  # tokens, sequence


def main() -> None:
    lines = []
    random = np.random.default_rng(0)
    ids = random.integers(0, VOCABULARY, TEXT)
    ids[TEXT // 2] = SLOT_ID
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.npy"
        np.save(file, random.standard_normal((VOCABULARY, WIDTH), np.float32).astype(np.float16))
        table = np.load(file, mmap_mode="r")
        for tokens, dtype in DTYPES:
            for frames in FRAMES:
                given = random.standard_normal((2, frames, 1, WIDTH), np.float32).astype(tokens)
                sides = _sides(ids, table, FrameTokens(*given), np.dtype(dtype))
                spent = in_turn(sides, rounds=15, clock=time.process_time)
                for kind, times in spent.items():
                    faster = ratio(spent["joined first"], times)
                    note = "" if kind == "joined first" else f"{faster:.2f} times the speed of joined first"
                    what = f"{frames} frames, {tokens} to {dtype}, {kind}"
                    lines.append(Line(what, statistics.median(times), "ms", note))
    publish("assembly", "A prompt's sequence, D = 4096", "python -m benchmarks.assembly", lines)


def _sides(
    ids: np.ndarray, table: Array, given: FrameTokens, dtype: np.dtype
) -> dict[str, Callable[[], Array]]:
    def by(implementation: str) -> Array:
        os.environ["LLAMAVID_PIXELS"] = implementation
        return assemble(ids, table, given, dtype=dtype)

    sides = {
        "joined first": lambda: _joined_first(ids, table, given, dtype),
        "NumPy": lambda: by("numpy"),
        "compiled": lambda: by("native"),
    }
    expected = sides["joined first"]()
    assert all(np.array_equal(side(), expected) for side in sides.values())
    return sides


def _joined_first(ids: np.ndarray, table: Array, given: FrameTokens, dtype: np.dtype) -> Array:
    """As it was done before: every row copied twice."""
    rows = np.concatenate(given, axis=1).reshape(-1, WIDTH)
    (slot,) = np.flatnonzero(ids == SLOT_ID)
    sequence = np.empty((1, len(ids) - 1 + len(rows), WIDTH), dtype)
    written = 0
    for piece in (table[ids[:slot]], rows, table[ids[slot + 1 :]]):
        sequence[0, written : written + len(piece)] = piece
        written += len(piece)
    return sequence


if __name__ == "__main__":
    main()
