"""A second question about a watched ten-minute video against asking anew, stage by stage.

Ten minutes of 720p H.264, a frame a second, no picture twice. Two models watch it, through a session as a
user has one, and are asked a few times. Asking anew is watching and asking; the second question is asking
alone.

- the embedded tiny model;
- EVA-g, Q-Former and Vicuna-7B at their real widths in int8 and int4, but with few blocks and layers: at full
  depth a round would take a quarter of an hour and 12 GB.

What full depth would take is composed of the second's stages: encoder and prefill by their operations, decode
by the bytes that a token reads, all else as it is. Composed, not measured, and said so in each line. Waiting
for decoded frames counts as nothing there: behind an encoder of 39 blocks another process has long done it.

python -m benchmarks.second_question [THREADS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.bundles import random_bundle
from benchmarks.clips import varied_clip
from benchmarks.report import Line, publish
from llamavid.bundle import open_bundle
from llamavid.ceilings import bytes_moved
from llamavid.config import LanguageConfig, ModelConfig
from llamavid.embedded import default_bundle, sample_clip
from llamavid.runtime.session import VideoSession
from llamavid.work import ENCODER, decode_work, frame_work, prefill_work

QUESTIONS = ("How many shapes are there?", "What color is the ball?")
TIMES = 114  # of the clip: 602 s
ASKED = 3  # times
NEW_TOKENS = 32  # of an answer
BLOCKS, LAYERS = 3, 3
ALL_BLOCKS, ALL_LAYERS = 39, 32
MUST = 5.0  # times

_TEXT_FREE = ("decode_video", "pixels", "vision", "content")
_TEXT_RELATED = ("context", "sequence", "prefill", "decode")
_CUT = f"{BLOCKS} of {ALL_BLOCKS} blocks, {LAYERS} of {ALL_LAYERS} layers"

Stages = dict[str, float]  # milliseconds


def main(threads: int | None) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        clip = varied_clip(folder / "ten_minutes.mp4", times=TIMES)
        lines = list(_measured("tiny model", _asked(default_bundle(), clip, threads)))
        bundle = random_bundle(folder, *_PRECISION, vision_depth=BLOCKS, layers=LAYERS)
        asked = _asked(bundle, clip, threads)
        lines += _measured(f"real widths, {_CUT}", asked)
        lines += _composed(asked, open_bundle(bundle).manifest.model)
    command = " ".join(["python -m benchmarks.second_question", *([str(threads)] if threads else [])])
    publish("second_question", "A second question about a ten-minute video", command, lines)


_PRECISION = ("--precision", "int8", "--scan", str(sample_clip()), "--llm-precision", "int4")


@dataclass(frozen=True)
class Asked:
    """Of one session: `watch` once, `ask` the median of its questions; loading apart."""

    frames: int
    prompt_tokens: int
    watch: Stages
    ask: Stages
    spread: str  # of the questions' sums

    @property
    def anew(self) -> Stages:
        return {**self.watch, **self.ask}


def _asked(bundle: Path, clip: Path, threads: int | None) -> Asked:
    with VideoSession.open(bundle, threads=threads) as session:
        frames = len(session.watch(clip).frames)
        watch = {stage: session.timings.milliseconds[stage] for stage in _TEXT_FREE}
        questions = [QUESTIONS[number % len(QUESTIONS)] for number in range(ASKED)]
        answers = [session.ask(question, max_new_tokens=NEW_TOKENS) for question in questions]
        assert session.frames_encoded == frames, f"{session.frames_encoded} encoded of {frames}"
    found = [{stage: answer.timings_ms[stage] for stage in _TEXT_RELATED} for answer in answers]
    ask = {stage: statistics.median(each[stage] for each in found) for stage in _TEXT_RELATED}
    told = ", ".join(f"{sum(each.values()) / 1000:,.3g}" for each in found)
    return Asked(frames, answers[-1].prompt_tokens, watch, ask, told)


def _measured(model: str, asked: Asked) -> Iterator[Line]:
    yield from _lines(model, asked.anew, asked.ask, {})
    note = f"{asked.frames} frames, all encoded once; {ASKED} questions: {asked.spread} s"
    yield Line(f"{model}: times sooner", _seconds(asked.anew) / _seconds(asked.ask), "x", note)


def _composed(asked: Asked, cut: ModelConfig) -> Iterator[Line]:
    """At full depth, of the stages that were measured."""
    factors = depth_factors(cut, asked.prompt_tokens)
    anew, second = whole_depth(asked.anew, factors), whole_depth(asked.ask, factors)
    model = "whole depth, composed"
    yield from _lines(model, anew, second, factors)
    yield Line(f"{model}: times sooner", _seconds(anew) / _seconds(second), "x", f"must be {MUST:g}")
    text = asked.prompt_tokens - asked.frames * cut.tokens_per_frame
    note = f"of {asked.prompt_tokens:,}; the others are frames', and change with the question"
    yield Line("tokens of a prompt that are text", text, "", note)


def depth_factors(cut: ModelConfig, prompt_tokens: int) -> Stages:
    """How many times as long each stage takes at full depth."""
    encoding = [
        frame_work(replace(cut, vision=replace(cut.vision, depth=depth)), 0)[ENCODER].operations
        for depth in (ALL_BLOCKS, cut.vision.depth)
    ]
    languages = [replace(cut.language, layers=layers) for layers in (ALL_LAYERS, cut.language.layers)]
    reading = [_prefill_operations(language, prompt_tokens) for language in languages]
    writing = [bytes_moved(decode_work(language, prompt_tokens), "int4") for language in languages]
    return {
        "decode_video": 0.0,
        "vision": encoding[0] / encoding[1],
        "prefill": reading[0] / reading[1],
        "decode": writing[0] / writing[1],
    }


def _prefill_operations(language: LanguageConfig, tokens: int) -> int:
    """As the graph has them: of the last layer only keys and values are computed of all rows."""
    before = prefill_work(replace(language, layers=language.layers - 1), tokens).operations
    return before + 2 * tokens * language.hidden * 2 * language.kv_heads * language.head_dim


def whole_depth(stages: Stages, factors: Stages) -> Stages:
    return {name: spent * factors.get(name, 1.0) for name, spent in stages.items()}


def _lines(model: str, anew: Stages, second: Stages, factors: Stages) -> Iterator[Line]:
    for who, stages in (("anew", anew), ("second", second)):
        for stage, spent in stages.items():
            scaled = f"{factors[stage]:.3g} times as measured" if stage in factors else ""
            yield Line(f"{model}, {who}: {stage}", spent / 1000, "s", scaled)
    yield Line(f"{model}: asking anew", _seconds(anew), "s")
    yield Line(f"{model}: second question", _seconds(second), "s")


def _seconds(stages: Stages) -> float:
    return sum(stages.values()) / 1000


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
