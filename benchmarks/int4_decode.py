"""The language model in int4 against float32, at Vicuna-7B's width: a token, and a prompt.

A few layers of random weights and a small head, exported as `llamavid export` does. All sides run in turn on
the same embeddings; beside them llama.cpp on the same weights in Q4_0, and OpenVINO on our graph in primitive
operations, so that its products are its own and its attention is not the one it has for language models.
The cache is float32 in our graphs, float16 in llama.cpp: what each does when nobody says otherwise.

python -m benchmarks.int4_decode [CONTEXT...]
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.openvino_peer import compiled
from benchmarks.quiet import QuietRounds
from benchmarks.random_layers import random_reader, vicuna, write_llm
from benchmarks.report import Line, publish, ratio, skipped
from llamavid.contract import Lowering, language_contract
from llamavid.export.precision import FP32, Precision, int4_precision
from llamavid.parity import relative_errors
from llamavid.runtime.decoder import Decoder, KeyValueCache
from llamavid.runtime.executors import OnnxExecutor

LAYERS = 3  # enough that int4 weights, 340 MB, leave the caches
LANGUAGE = vicuna(layers=LAYERS, vocab_size=2048)  # a head in proportion
CONTEXTS = (256, 1024, 7200)  # tokens read before; an hour of video is 7,200
ROUNDS = 8
PROMPT, PROMPT_ROUNDS = 256, 5
STEPS = 4  # times the same token in one measured call
CAPACITY = 7424
PATIENCE_SECONDS = 120
UNIT = f"ms, {LAYERS} layers"

FLOAT32, BLOCK_32, LLAMA_CPP = "float32", "int4 in blocks of 32", "llama.cpp Q4_0"
PRECISIONS = {FLOAT32: FP32, BLOCK_32: int4_precision(32), "int4 in blocks of 128": int4_precision(128)}

Array = np.ndarray
Measure = Callable[[dict[str, Callable[[], object]]], dict[str, list[float]]]  # milliseconds a call


@dataclass(frozen=True)
class Side:
    """Who answers.

    Args:
        run: rows [T, D] behind so many tokens -> logits [V] after the last.
        fill: makes the cache hold so many tokens; not measured.
    """

    run: Callable[[Array, int], Array]
    fill: Callable[[int], object] = lambda past: None


def main(contexts: tuple[int, ...]) -> None:
    quiet, lines = QuietRounds(PATIENCE_SECONDS), []
    rows = np.random.default_rng(0).standard_normal((CAPACITY, LANGUAGE.hidden), np.float32)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides = dict(_sides(Path(folder), rows, stack))
        for line in _measured(sides, rows, contexts, quiet):
            print(f"{line.what}: {line.figure}; {line.note}", file=sys.stderr)
            lines.append(line)
    command = " ".join(["python -m benchmarks.int4_decode", *map(str, contexts)])
    publish("int4_decode", "The language model in int4", command, [*lines, *_absent(), quiet.line])


# 1) Measured


def _measured(
    sides: dict[str, Side], rows: Array, contexts: tuple[int, ...], quiet: QuietRounds
) -> Iterator[Line]:
    yield from _prompt(sides, rows, quiet)
    for past in contexts:
        yield from _decode(sides, rows, past, quiet)


def _prompt(sides: dict[str, Side], rows: Array, quiet: QuietRounds) -> Iterator[Line]:
    """A line a side, with how far its logits are from float32."""
    spent, logits = _in_turn(sides, rows[:PROMPT], 0, partial(quiet.in_turn, rounds=PROMPT_ROUNDS))
    for name, spent_ms in spent.items():
        error = relative_errors(logits[FLOAT32], logits[name])[1]
        note = f"{_compared(spent, name)}; relative error of its logits {error:.1e}"
        yield Line(f"prefill of {PROMPT}, {name}", statistics.median(spent_ms), UNIT, note)


def _decode(sides: dict[str, Side], rows: Array, past: int, quiet: QuietRounds) -> Iterator[Line]:
    """A line a side."""
    measure = partial(quiet.in_turn, rounds=ROUNDS)
    spent, _ = _in_turn(sides, rows[past : past + 1], past, measure, times=STEPS)
    for name, spent_ms in spent.items():
        a_token = statistics.median(spent_ms) / STEPS
        yield Line(f"a token at {past}, {name}", a_token, UNIT, _compared(spent, name))


def _in_turn(
    sides: dict[str, Side], rows: Array, past: int, measure: Measure, *, times: int = 1
) -> tuple[dict[str, list[float]], dict[str, Array]]:
    """Milliseconds of `times` runs, and the logits, of each side."""
    for side in sides.values():
        side.fill(past)
    logits = {name: side.run(rows, past) for name, side in sides.items()}

    def repeat(side: Side) -> None:
        for _ in range(times):
            side.run(rows, past)

    return measure({name: partial(repeat, side) for name, side in sides.items()}), logits


def _compared(spent: dict[str, list[float]], name: str) -> str:
    told = [f"{ratio(spent[FLOAT32], spent[name]):.2f} times as fast as float32"]
    if LLAMA_CPP in spent and name not in (FLOAT32, LLAMA_CPP):
        told.append(f"{ratio(spent[LLAMA_CPP], spent[name]):.2f} times llama.cpp")
    return ", ".join(told)


# 2) Sides


def _sides(folder: Path, rows: Array, stack: contextlib.ExitStack) -> Iterator[tuple[str, Side]]:
    cache = _filled_cache()
    for name, precision in PRECISIONS.items():
        yield name, _ours(folder / name, precision, cache)
    if _has_llama_cpp():
        yield LLAMA_CPP, _llama_cpp(folder / "q4_0.gguf", rows, stack)
    if find_spec("openvino"):
        yield f"OpenVINO, {BLOCK_32}", _openvino(folder / "openvino", PRECISIONS[BLOCK_32], cache)


def _absent() -> Iterator[Line]:
    if not _has_llama_cpp():
        yield skipped(LLAMA_CPP, "llama-cpp-python or gguf")
    if not find_spec("openvino"):
        yield skipped("OpenVINO", "openvino")


def _has_llama_cpp() -> bool:
    return bool(find_spec("llama_cpp") and find_spec("gguf"))


def _ours(folder: Path, precision: Precision, cache: KeyValueCache) -> Side:
    """The cache holds numbers up to its end: only their count matters."""
    folder.mkdir()
    contract = language_contract(LANGUAGE, precision.compute)
    decoder = Decoder(OnnxExecutor(write_llm(folder, LANGUAGE, precision), contract), contract, LANGUAGE)

    def run(rows: Array, past: int) -> Array:
        cache.length = past
        return decoder.prefill(cache, rows[None])

    return Side(run)


def _llama_cpp(file: Path, rows: Array, stack: contextlib.ExitStack) -> Side:
    from benchmarks.llama_cpp import LlamaCpp, write_gguf

    write_gguf(file, LANGUAGE, random_reader(LANGUAGE))
    model = stack.enter_context(LlamaCpp(file, context=CAPACITY, threads=os.cpu_count() or 1))
    return Side(
        lambda rows, past: model.run(rows, past=past),
        lambda past: model.run(rows[:past], past=0) if past else None,
    )


def _openvino(folder: Path, precision: Precision, cache: KeyValueCache) -> Side:
    """The lowering in primitive operations, which reads the whole cache that it is given."""
    folder.mkdir()
    infer = compiled(write_llm(folder, LANGUAGE, precision, Lowering.PRIMITIVE))
    seen: dict[str, Array] = {}

    def fill(past: int) -> None:
        for name, buffer in cache.buffers.items():
            seen[name] = np.ascontiguousarray(buffer[:, :, :past])

    def run(rows: Array, past: int) -> Array:
        total = np.asarray([past + len(rows)], np.int32)
        return infer({"inputs_embeds": rows[None], "total_length": total} | seen)["logits"][0].copy()

    return Side(run, fill)


def _filled_cache() -> KeyValueCache:
    """One for all sides of ours, of real pages: untouched zeros are one page, and fast."""
    random, shape = np.random.default_rng(1), (1, LANGUAGE.kv_heads, CAPACITY, LANGUAGE.head_dim)
    specs = (spec.name for spec in language_contract(LANGUAGE, FP32.compute).inputs)
    names = [name for name in specs if name.startswith("past.")]
    return KeyValueCache({name: random.standard_normal(shape, np.float32) for name in names}, CAPACITY)


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or CONTEXTS)
