"""Does a decode step copy the cache? One layer at Vicuna-7B's width, short and long context.

Ours binds past and present to one buffer; beside it the same graph with two
buffers, which copies every step.

python -m benchmarks.decode_length
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.random_layers import vicuna, write_llm
from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.contract import DType, language_contract
from llamavid.export.precision import int4_precision
from llamavid.runtime.executors import OnnxExecutor

LAYER = vicuna(layers=1, vocab_size=256)  # the head is not what is measured
TOKENS = (256, 7200)


def main() -> None:
    lines, ours = [], {}
    with tempfile.TemporaryDirectory() as folder:
        write_llm(Path(folder), LAYER, int4_precision(32))
        for tokens in TOKENS:
            sides = {kind: _step(Path(folder), tokens, kind) for kind in ("one buffer", "two buffers")}
            spent = in_turn(sides, rounds=15)
            ours[tokens] = spent["one buffer"]
            for kind, times in spent.items():
                slower = ratio(times, spent["one buffer"])
                note = "" if kind == "one buffer" else f"{slower:.1f} times one buffer"
                lines.append(
                    Line(f"one layer, one token at {tokens}, {kind}", statistics.median(times), "ms", note)
                )
    growth = ratio(ours[TOKENS[1]], ours[TOKENS[0]])
    lines.append(
        Line(f"{TOKENS[1]} tokens over {TOKENS[0]}, one buffer", growth, "times", "the attention itself")
    )
    publish("decode_length", "A decode step, by context", "python -m benchmarks.decode_length", lines)


def _step(folder: Path, tokens: int, kind: str) -> Callable[[], object]:
    """One decode step with the cache filled to `tokens`."""
    inputs = {
        "inputs_embeds": np.random.default_rng(1).normal(size=(1, 1, LAYER.hidden)).astype(np.float32),
        "total_length": np.asarray([tokens], np.int32),
    }
    shape = (1, LAYER.kv_heads, LAYER.context_length, LAYER.head_dim)
    random = np.random.default_rng(2)  # real pages: untouched zeros are one page, and fast
    cache = {name: random.standard_normal(shape, np.float32) for name in ("key", "value")}
    if kind == "one buffer":
        executor = OnnxExecutor(folder / "llm.onnx", language_contract(LAYER, DType.FLOAT32))
        for name, buffer in cache.items():
            executor.share(f"past.0.{name}", f"present.0.{name}", buffer)
        return lambda: executor.run(inputs)
    session = ort.InferenceSession(str(folder / "llm.onnx"), providers=["CPUExecutionProvider"])
    copied = inputs | {f"past.0.{name}": buffer for name, buffer in cache.items()}
    return lambda: session.run(None, copied)


if __name__ == "__main__":
    main()
