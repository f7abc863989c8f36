"""The embedded model from a file to its answers: ours, and the plain PyTorch model of the same checkpoint.

Both read the sample clip by our reader and prepare its pixels alike; what follows is each side's own: ours
the embedded bundle (float16 files) through a session, theirs `LlamaVid` in float32, eager. In turn; loading
apart. Answers must be the same ids. Frames a second are those of encoder, content and context alone. On one
thread this process's own time is measured, which others on the machine hardly disturb.

python -m benchmarks.tiny_end_to_end [THREADS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.report import ONE_THREAD, Line, in_turn, publish, ratio
from llamavid.bundle import open_bundle
from llamavid.embedded import default_bundle, embedded_checkpoint, sample_clip, sample_questions
from llamavid.model.llamavid import LlamaVid, load_model
from llamavid.runtime.clip import frame_pixels
from llamavid.runtime.encoder import CONTEXT_BATCH, FrameEncoder
from llamavid.runtime.graphs import Graphs
from llamavid.runtime.session import VISION_BATCH, VideoSession
from llamavid.runtime.timing import Timings
from llamavid.runtime.video.sources import open_source

OURS, PLAIN = "ours", "PyTorch eager"
ROUNDS = 12
FRAMES = 32  # through the frame graphs
NEW_TOKENS = 32

Array = np.ndarray
Answers = list[tuple[int, ...]]


def main(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    model = load_model(embedded_checkpoint())
    with VideoSession.open(default_bundle(), threads=threads) as session:
        sides = {OURS: partial(_ours, session), PLAIN: partial(_plain, model)}
        answers = {name: answer() for name, answer in sides.items()}
        assert answers[OURS] == answers[PLAIN], f"other answers: {answers}"
        spent = in_turn(sides, ROUNDS, clock=clock)
    asked = f"the sample clip and {len(sample_questions())} questions"
    lines = [
        Line(f"from file to answers, {name}", statistics.median(times), "ms", f"{asked}; one process decodes")
        for name, times in spent.items()
    ]
    lines.append(
        Line("from file to answers: times as fast", ratio(spent[PLAIN], spent[OURS]), "x", "same answers")
    )
    lines += _frames(model, threads, clock)
    command = " ".join(["python -m benchmarks.tiny_end_to_end", *([str(threads)] if threads else [])])
    title = "The embedded model, end to end" + (ONE_THREAD if threads == 1 else "")
    publish("tiny_end_to_end", title, command, lines)


def _frames(model: LlamaVid, threads: int | None, clock: Callable[[], float]) -> list[Line]:
    """Frames through encoder, content and context of one question, pixels to tokens."""
    pixels = np.resize(_pixels(model), (FRAMES, 3, *_pixels(model).shape[2:]))
    question = sample_questions()[0].question
    ids = model.question_tokenizer.ids(question)
    encoder = FrameEncoder(
        Graphs(open_bundle(default_bundle()), timings=Timings(), threads=threads), Timings()
    )

    def ours() -> list[object]:
        """In runs as large as a session's."""
        made = [encoder.encode(run)[0] for run in np.split(pixels, FRAMES // VISION_BATCH)]
        runs = np.split(np.concatenate(made), FRAMES // CONTEXT_BATCH)
        return [encoder.context(features, ids) for features in runs]

    @torch.inference_mode()
    def plain() -> object:
        return model.frame_tokens(model.encode_frames(torch.from_numpy(pixels)), question)

    sides: dict[str, Callable[[], object]] = {OURS: ours, PLAIN: plain}
    spent = in_turn(sides, ROUNDS, clock=clock)
    note = f"{FRAMES} frames, one question"
    lines = [
        Line(f"frame graphs, {name}", 1000 * FRAMES / statistics.median(times), "frames/s", note)
        for name, times in spent.items()
    ]
    return [*lines, Line("frame graphs: times as fast", ratio(spent[PLAIN], spent[OURS]), "x")]


def _ours(session: VideoSession) -> Answers:
    session.watch(sample_clip())
    return [
        tuple(session.ask(each.question, max_new_tokens=NEW_TOKENS).token_ids) for each in sample_questions()
    ]


def _plain(model: LlamaVid) -> Answers:
    features = model.encode_frames(torch.from_numpy(_pixels(model)))
    return [
        tuple(model.generate(features, each.question, max_new_tokens=NEW_TOKENS))
        for each in sample_questions()
    ]


def _pixels(model: LlamaVid) -> Array:
    """Of the sample clip at a frame a second, float32 [T, 3, S, S]."""
    with open_source(sample_clip(), fps=1.0) as source:
        return frame_pixels(list(source.frames()), source.kind, model.config.preprocessing)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
