"""The language model in int4, at Vicuna-7B's width: a prompt, and a token, behind little and behind an hour.

A few layers of random weights and a small head, exported as `llamavid export` does, beside float32: llama.cpp
on the same weights in Q4_0, and OpenVINO on our graph in primitive operations, so that its products are its
own and its attention is not the one it has for language models. One side is ours with ONNX Runtime's
operators alone, where the processor has our own in their place. The cache is float32 unless a side's name
says otherwise; llama.cpp's is float16, and its flash attention is on, which is what it chooses.

All read the same embeddings in turn: a prompt, and a token behind it. In a prompt neither we nor llama.cpp
compute what nobody reads of the last layer, so that 3 layers have the products of 2.25, and 32 of 31.25. That
of an hour is read once: each of its 15 chunks does the same work.

python -m benchmarks.int4_decode          about seven minutes, 6 GB of memory, 4 GB of disk
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.openvino_peer import compiled
from benchmarks.quiet import QuietRounds
from benchmarks.random_layers import random_reader, vicuna, write_llm
from benchmarks.report import Line, publish, ratio, skipped
from llamavid.contract import DType, Lowering, language_contract
from llamavid.export.precision import FP32, Precision, int4_precision
from llamavid.parity import relative_errors
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.kernels import Kernels

LAYERS = 3  # enough that int4 weights, 340 MB, leave the caches
LANGUAGE = vicuna(layers=LAYERS, vocab_size=2048)  # a head in proportion
SHORT, HOUR = 256, 7200  # tokens
ROUNDS, PROMPT_ROUNDS = 8, 5
STEPS = 4  # times the same token in one measured call
CAPACITY = 7424
PATIENCE_SECONDS = 120
UNIT = f"ms, {LAYERS} layers"

FLOAT32, BLOCK_32, BLOCK_128, LLAMA_CPP = "float32", "int4 by 32", "int4 by 128", "llama.cpp Q4_0"
PRECISIONS = {
    FLOAT32: FP32,
    BLOCK_32: int4_precision(32),
    BLOCK_128: int4_precision(128),
    f"{BLOCK_128}, float16 cache": replace(int4_precision(128), cache=DType.FLOAT16),
    f"{BLOCK_128}, int8 cache": replace(int4_precision(128), cache=DType.INT8),
}
WITHOUT_OURS = f"{BLOCK_128}, ONNX Runtime's own operators, none of ours"
OPENVINO = f"OpenVINO, {BLOCK_32}"
NOT_FOR_AN_HOUR = {FLOAT32, OPENVINO}  # a minute each, and the first takes the memory of two others

Array = np.ndarray
Side = Callable[[Array, int], Array]  # rows [T, D] behind the first so many that it read -> logits [V]
Measure = Callable[[dict[str, Callable[[], object]]], dict[str, list[float]]]  # milliseconds a call


def main() -> None:
    quiet, lines = QuietRounds(PATIENCE_SECONDS), []
    rows = np.random.default_rng(0).standard_normal((CAPACITY, LANGUAGE.hidden), np.float32)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for line in _measured(dict(_sides(Path(folder), stack)), rows, quiet):
            print(f"{line.what}: {line.figure}; {line.note}", file=sys.stderr)
            lines.append(line)
    command = "python -m benchmarks.int4_decode"
    publish("int4_decode", "The language model in int4", command, [*lines, *_absent(), quiet.line])


# 1) Measured


def _measured(sides: dict[str, Side], rows: Array, quiet: QuietRounds) -> Iterator[Line]:
    """At each length the prompt comes first: it is what the token is behind."""
    yield from _prompt(sides, rows[:SHORT], partial(quiet.in_turn, rounds=PROMPT_ROUNDS))
    yield from _token(sides, rows, SHORT, quiet)
    for name in NOT_FOR_AN_HOUR & sides.keys():
        del sides[name]
    yield from _prompt(sides, rows[:HOUR], partial(quiet.in_turn, rounds=1, warm_up=False))
    yield from _token(sides, rows, HOUR, quiet)


def _prompt(sides: dict[str, Side], prompt: Array, measure: Measure) -> Iterator[Line]:
    """A line a side."""
    logits: dict[str, Array] = {}

    def read(name: str) -> None:
        logits[name] = sides[name](prompt, 0)

    spent = measure({name: partial(read, name) for name in sides})
    for name in sides:
        yield _line(f"prefill of {len(prompt):,}", name, spent, logits)


def _token(sides: dict[str, Side], rows: Array, past: int, quiet: QuietRounds) -> Iterator[Line]:
    """A line a side."""
    token = rows[past : past + 1]
    logits = {name: side(token, past) for name, side in sides.items()}

    def repeat(side: Side) -> None:
        for _ in range(STEPS):
            side(token, past)

    spent = quiet.in_turn({name: partial(repeat, side) for name, side in sides.items()}, ROUNDS)
    a_token = {name: [one / STEPS for one in taken] for name, taken in spent.items()}
    for name in sides:
        yield _line(f"a token at {past:,}", name, a_token, logits)


def _line(what: str, name: str, spent: dict[str, list[float]], logits: dict[str, Array]) -> Line:
    others = [other for other in _others(name) if other in spent and other != name]
    told = [f"{ratio(spent[other], spent[name]):.2f} times {other}" for other in others]
    reference = _reference(name, list(logits))
    error = relative_errors(logits[reference], logits[name])[1]
    told += [f"error of its logits from {reference} {error:.1e}"] if reference != name else []
    return Line(f"{what}, {name}", statistics.median(spent[name]), UNIT, ", ".join(told))


def _others(name: str) -> tuple[str, ...]:
    """Which it is compared with."""
    return (FLOAT32, LLAMA_CPP, WITHOUT_OURS) if name == BLOCK_128 else (FLOAT32, LLAMA_CPP)


def _reference(name: str, sides: list[str]) -> str:
    """The same with a float32 cache and our operators, where the name says otherwise; else the first."""
    same = name.partition(", ")[0]
    return same if same != name and same in sides else sides[0]


# 2) Sides


def _sides(folder: Path, stack: contextlib.ExitStack) -> Iterator[tuple[str, Side]]:
    for name, precision in PRECISIONS.items():
        yield name, _ours(_written(folder / name, precision), precision)
    file, precision = folder / BLOCK_128 / "llm.onnx", PRECISIONS[BLOCK_128]
    yield WITHOUT_OURS, _ours(file, precision, Kernels.ONNX_RUNTIME)
    if _has_llama_cpp():
        yield LLAMA_CPP, _llama_cpp(folder / "q4_0.gguf", stack)
    if find_spec("openvino"):
        yield OPENVINO, _openvino(folder / "openvino", PRECISIONS[BLOCK_32])


def _absent() -> Iterator[Line]:
    if not _has_llama_cpp():
        yield skipped(LLAMA_CPP, "llama-cpp-python or gguf")
    if not find_spec("openvino"):
        yield skipped("OpenVINO", "openvino")


def _has_llama_cpp() -> bool:
    return bool(find_spec("llama_cpp") and find_spec("gguf"))


def _written(folder: Path, precision: Precision) -> Path:
    folder.mkdir()
    return write_llm(folder, LANGUAGE, precision)


def _ours(file: Path, precision: Precision, kernels: Kernels = Kernels.BEST) -> Side:
    contract = language_contract(LANGUAGE, precision.compute, cache=precision.cache)
    decoder = Decoder(OnnxExecutor(file, contract, kernels=kernels), contract, LANGUAGE)
    cache = decoder.new_cache(CAPACITY)

    def run(rows: Array, past: int) -> Array:
        cache.length = past
        return decoder.prefill(cache, rows[None])

    return run


def _llama_cpp(file: Path, stack: contextlib.ExitStack) -> Side:
    from benchmarks.llama_cpp import LlamaCpp, write_gguf

    write_gguf(file, LANGUAGE, random_reader(LANGUAGE))
    model = stack.enter_context(LlamaCpp(file, context=CAPACITY, threads=os.cpu_count() or 1))
    return lambda rows, past: model.run(rows, past=past)


def _openvino(folder: Path, precision: Precision) -> Side:
    """The lowering in primitive operations, which reads the whole cache that it is given."""
    folder.mkdir()
    infer = compiled(write_llm(folder, LANGUAGE, precision, Lowering.PRIMITIVE))
    specs = language_contract(LANGUAGE, precision.compute, Lowering.PRIMITIVE).inputs
    names = [spec.name for spec in specs if spec.name.startswith("past.")]
    nothing = np.zeros((1, LANGUAGE.kv_heads, 0, LANGUAGE.head_dim), np.float32)
    read: dict[str, Array] = {}

    def run(rows: Array, past: int) -> Array:
        total, cache = (
            np.asarray([past + len(rows)], np.int32),
            read if past else dict.fromkeys(names, nothing),
        )
        found = infer({"inputs_embeds": rows[None], "total_length": total} | cache)
        if not past:
            read.update({name: found[name.replace("past.", "new.", 1)].copy() for name in names})
        return found["logits"][0].copy()

    return run


if __name__ == "__main__":
    main()
