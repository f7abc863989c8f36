"""A standing question: does the time to its first token grow with the length of the video?

Two layers of Vicuna-7B's width in int4 read the frame tokens of five minutes and of an hour, a frame a
second. Every five seconds the question is asked again. With the default window of ten minutes the cache
stays short; with a window of an hour it holds 7,200 tokens, and what grows is the attention over them.
ONNX Runtime's profile of the same steps tells how much that is.

python -m benchmarks.standing_question
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.bundles import random_bundle
from benchmarks.report import Line, in_turn, publish, ratio
from llamavid.bundle import Bundle, open_bundle
from llamavid.runtime.assembly import FrameTokens
from llamavid.runtime.decoder import KeyValueCache
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.language import LanguageModel
from llamavid.runtime.standing import StandingAnswer, StandingQuestion, Window
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.frames import FrameTime
from llamavid.sampling import Sampling

MINUTES = (5, 60)
EVERY_SECONDS = 5
ROUNDS = 12
QUESTION = "Is there anything on the road that the robot should stop for?"
ATTENTION = "GroupQueryAttention"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(
            random_bundle(
                Path(folder),
                "--llm-precision",
                "int4",
                vision_depth=1,
                text_layers=1,
                layers=2,
                rope_factor=4.0,
            )
        )
        language = LanguageModel(Graphs(bundle, timings=Timings()))
        lines = [
            *_windowed(bundle, language, "window of 10 minutes", Window(600, 601)),
            *_windowed(bundle, language, "window of an hour", Window(3700, 3701)),
            *_attention(bundle),
        ]
    publish(
        "standing_question",
        "A standing question after five minutes and after an hour",
        "python -m benchmarks.standing_question",
        lines,
    )


def _windowed(bundle: Bundle, language: LanguageModel, what: str, window: Window) -> list[Line]:
    asked = {minutes: _Asked(bundle, language, window, minutes) for minutes in MINUTES}
    in_turn({str(minutes): one.again for minutes, one in asked.items()}, ROUNDS)
    first = {minutes: [answer.first_token_ms for answer in one.answers[1:]] for minutes, one in asked.items()}
    lines = []
    for minutes, one in asked.items():
        note = f"{one.answers[-1].prompt_tokens:,} tokens in the cache, {EVERY_SECONDS} new frames an answer"
        lines.append(
            Line(f"{what}, after {minutes} min: first token", statistics.median(first[minutes]), "ms", note)
        )
    short, long = MINUTES
    grown = ratio(first[long], first[short])
    return [*lines, Line(f"{what}: {long} min over {short} min", grown, "times", "1.3 is asked")]


class _Asked:
    """A question that has stood for some minutes, and its answers."""

    def __init__(self, bundle: Bundle, language: LanguageModel, window: Window, minutes: int) -> None:
        config = bundle.manifest.model
        self._width, self._random = config.language.hidden, np.random.default_rng(minutes)
        self._question = StandingQuestion(
            QUESTION,
            language,
            window,
            template="vicuna_v1",
            tokens_per_frame=config.tokens_per_frame,
            max_new_tokens=1,
            sampling=Sampling(),
        )
        self._seconds = 0
        self.answers: list[StandingAnswer] = []
        self._see(60 * minutes)

    def again(self) -> None:
        self._see(EVERY_SECONDS)
        self.answers.append(self._question.answer())

    def _see(self, seconds: int) -> None:
        times = range(self._seconds, self._seconds + seconds)
        shape = (seconds, 1, self._width)
        context, content = (self._random.normal(0, 0.1, shape).astype(np.float32) for _ in range(2))
        self._question.see([FrameTime(at, float(at)) for at in times], FrameTokens(context, content))
        self._seconds += seconds


def _attention(bundle: Bundle) -> list[Line]:
    """The operations of one answer's prefill, by ONNX Runtime's own clock."""
    sessions = {minutes: _profiling(bundle) for minutes in MINUTES}
    steps = {minutes: _step(session, bundle, 120 * minutes, rows=40) for minutes, session in sessions.items()}
    in_turn({str(minutes): run for minutes, run in steps.items()}, ROUNDS)
    lines, spent = [], {minutes: _spent(session) for minutes, session in sessions.items()}
    for minutes, (attention, rest) in spent.items():
        what = f"profile at {120 * minutes:,} tokens"
        lines += [Line(f"{what}: attention", attention, "ms"), Line(f"{what}: all else", rest, "ms")]
    short, long = (spent[minutes] for minutes in MINUTES)
    note = "what does not look at more tokens does not take longer"
    return [*lines, Line("profile: all else, 60 min over 5 min", long[1] / short[1], "times", note)]


def _profiling(bundle: Bundle) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(bundle.folder / "profile")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    file = bundle.path(bundle.manifest.graphs["llm"].file)
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _spent(session: ort.InferenceSession) -> tuple[float, float]:
    """Medians over the measured runs of (attention, all else), in milliseconds."""
    events = json.loads(Path(session.end_profiling()).read_text())
    steps = [
        event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    per_run = len(steps) // (1 + ROUNDS)
    runs = [steps[start : start + per_run] for start in range(per_run, len(steps), per_run)]
    sums = [[0.0, 0.0] for _ in runs]
    for run, both in zip(runs, sums, strict=True):
        for event in run:
            both[event["args"]["op_name"] != ATTENTION] += event["dur"] / 1000
    attention, rest = zip(*sums, strict=True)
    return statistics.median(attention), statistics.median(rest)


def _step(session: ort.InferenceSession, bundle: Bundle, tokens: int, *, rows: int) -> Callable[[], object]:
    past = [spec for spec in bundle.manifest.graphs["llm"].contract.inputs if spec.name.startswith("past.")]
    shape = [tokens + rows if dim == "cache" else int(dim) for dim in past[0].dims]
    random, binding = np.random.default_rng(0), session.io_binding()
    width = bundle.manifest.model.language.hidden
    cache = KeyValueCache({spec.name: random.standard_normal(shape, np.float32) for spec in past}, shape[2])
    values = {name: ort.OrtValue.ortvalue_from_numpy(buffer) for name, buffer in cache.buffers.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past.", "present."), value)
    inputs = {
        "inputs_embeds": random.normal(0, 0.1, (1, rows, width)).astype(np.float32),
        "total_length": np.asarray([tokens + rows], np.int32),
    }
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("logits")
    kept = (cache, values, inputs)  # ONNX Runtime does not keep them
    return lambda: (session.run_with_iobinding(binding), kept)


if __name__ == "__main__":
    main()
