"""From nothing to the checkpoint that the tiny model's stage 1 starts from.

    python -m llamavid.train.tiny_pretraining -o START

Eyes (`tiny_sight`) and language (`tiny_language`) are pretrained side by side, each in a process of its own,
and written in the release layout with `pretraining.json`: what they then knew, how long it took. Run again
after a crash, it continues.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from llamavid.console import remark
from llamavid.errors import UsageError
from llamavid.model.llamavid import LlamaVid
from llamavid.train.parser import Parser, run_command
from llamavid.train.pretraining import Schedule, Task, pretrain
from llamavid.train.tiny_language import language_task
from llamavid.train.tiny_sight import sight_task
from llamavid.train.tiny_start import new_model, write_start, write_tokenizers
from llamavid.train.world_captions import caption
from llamavid.train.world_casting import scenes
from llamavid.train.world_questions import DESCRIBE_ALL, DESCRIBE_ONE, questions

SIGHT = Schedule(steps=5000, learning_rate=1e-3)
LANGUAGE = Schedule(steps=3000, learning_rate=1.5e-3)
_READ_ALOUD = 500  # scenes whose words the tokenizers know
_STATES = "pretraining"
_REMARK_STEPS = 250


@dataclass(frozen=True)
class Learned:
    """What one pretraining came to. accuracy: as its task examines it."""

    name: str
    steps: int
    seconds: float
    loss: float
    accuracy: dict[str, float]


def pretrained_start(
    output: Path, *, sight: Schedule = SIGHT, language: Schedule = LANGUAGE, examined: int = 400
) -> Path:
    """Writes the start checkpoint to `output` and gives its folder.

    Args:
        examined: held-out scenes that each of the two is examined on afterwards.

    Raises:
        UsageError: `output` holds something else.
        OSError: the disk is full.
    """
    work = output.with_name(output.name + ".partial")
    if output.exists():
        raise UsageError(f"{output} is there already", expected="a new folder")
    if not (work / _STATES).is_dir():
        shutil.rmtree(work, ignore_errors=True)
        write_tokenizers(work, _texts())
        (work / _STATES).mkdir()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as both:
        jobs = [
            both.submit(_learned, name, schedule, work, examined)
            for name, schedule in (("sight", sight), ("language", language))
        ]
        records = [job.result() for job in jobs]
    model = new_model(work)
    for name, task in _tasks(model).items():
        task.learner.load_state_dict(torch.load(_state(work, name), weights_only=True)["learner"])
    write_start(work, model)
    text = json.dumps({record.name: vars(record) for record in records}, indent=1)
    (work / "pretraining.json").write_text(text + "\n", encoding="utf-8")
    work.rename(output)
    shutil.rmtree(output / _STATES)  # last: an hour's work is in there
    return output / "checkpoint"


def _texts() -> Iterator[str]:
    """Every word that is ever said."""
    for scene in scenes("train", 0, _READ_ALOUD, drawable=False):
        yield from (f"{question.text} {question.answer}" for question in questions(scene))
        yield caption(scene)
    for text in (*DESCRIBE_ALL, *DESCRIBE_ONE):
        yield text.format("", place="video picture")


def _tasks(model: LlamaVid) -> dict[str, Task[Any]]:
    return {"sight": sight_task(model), "language": language_task(model)}


def _state(work: Path, name: str) -> Path:
    return work / _STATES / f"{name}.pt"


def _learned(name: str, schedule: Schedule, work: Path, examined: int) -> Learned:
    """Runs, or continues, one of the two, in a process with half of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    model = new_model(work).to("cuda" if torch.cuda.is_available() else "cpu")
    task = _tasks(model)[name]
    watch = _Watch(name, schedule.steps)
    pretrain(task, schedule, state=_state(work, name), on_step=watch)
    model.eval()
    return Learned(name, schedule.steps, round(watch.seconds), round(watch.loss, 3), task.examine(examined))


class _Watch:
    """Tells now and then how a pretraining goes."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.loss, self.first = name, steps, 0.0, 0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def __call__(self, step: int, loss: float) -> None:
        self.first = self.first or step
        self.loss = 0.98 * self.loss + 0.02 * loss if self.loss else loss
        if step % _REMARK_STEPS == 0 or step == self.steps:
            left = self.seconds / (step - self.first + 1) * (self.steps - step) / 60
            remark(f"{self.name}: step {step} of {self.steps}, loss {self.loss:.3f}, {left:.0f} min left")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    checkpoint = pretrained_start(
        options.output,
        sight=replace(SIGHT, steps=options.sight_steps, seed=options.seed),
        language=replace(LANGUAGE, steps=options.language_steps, seed=options.seed),
    )
    print(f"{checkpoint}. Next: llamavid train stage1 --set checkpoint={checkpoint} ...")


def _parser() -> Parser:
    made = Parser(
        prog="python -m llamavid.train.tiny_pretraining",
        description="Pretrain the tiny model's eyes and language, and write what stage 1 starts from.",
    )
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    made.add_argument("--sight-steps", type=int, default=SIGHT.steps, metavar="N")
    made.add_argument("--language-steps", type=int, default=LANGUAGE.steps, metavar="N")
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    sys.exit(main())
