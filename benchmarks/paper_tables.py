"""The paper in miniature: its Tables 6, 7 and 8 on the little world, one model a row.

    python -m llamavid.train.tiny_pretraining -o START
    python -m llamavid.train.little_world --split train --clips 3000 --stills 1000 -o WORLD
    python -m llamavid.train.little_world --split heldout --clips 150 --stills 50 -o HELDOUT
    python -m benchmarks.paper_tables START WORLD HELDOUT -o build/tables

Six models go through stage 1 and stage 2 from one start, with the same samples in the same order, and are
asked the same held-out questions, greedily, in PyTorch; an answer is right as `llamavid eval` judges it. A
row that is done is kept under the output folder, an interrupted one continues. `paper_page` is what is
written in the end.

Note [What a row may see]
    The longest row, 1+16 tokens, has to fit the context with room for text, and the start's language model
    has read at most 60 s of clip in one conversation: longer conversations are cut and longer clips left out,
    for every row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.paper_page import Row, publish
from benchmarks.report import RESULTS
from llamavid.console import Progress, remark
from llamavid.errors import UsageError
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.llamavid import LlamaVid, load_model
from llamavid.runtime.clip import clip_pixels
from llamavid.runtime.evaluate import is_right
from llamavid.runtime.qa_layouts import Item, read_data_set
from llamavid.train.ablation import (
    Ablation,
    Token,
    ablate,
    shared_data,
    stage_of,
    write_variant,
)
from llamavid.train.dataset import planned_steps, read_dataset
from llamavid.train.examples import Media, Sample
from llamavid.train.features import FrameFeatures
from llamavid.train.loop import Progress as Step
from llamavid.train.loop import Settings, train
from llamavid.train.parser import Parser, run_command
from llamavid.train.stages import STAGE1, STAGE2, Stage, with_overrides

ABLATIONS = {
    "both": Ablation(),
    "content": Ablation(only=Token.CONTENT),
    "context": Ablation(only=Token.CONTEXT),
    "1+4": Ablation(pool_grid=2),
    "1+16": Ablation(pool_grid=4),
    "bert": Ablation(bert_layers=2),  # as many as the Q-Former here, and as the paper's Table 9 runs
}
MOST_SECONDS = 60  # Note [What a row may see]
_MAX_NEW_TOKENS = 16  # as `llamavid eval`
_MICRO_BATCH = 4
_SAVE_EVERY = 50
_HEADER, _OUTCOME, _STAGE_DONE = "settings.json", "outcome.json", "done.json"


@dataclass(frozen=True)
class Course:
    """What all rows have in common."""

    steps1: int = 100
    steps2: int = 200
    batch1: int = 32
    batch2: int = 16
    rate1: float = 1e-3
    rate2: float = 5e-4
    seed: int = 0
    questions: int = 500

    def stage(self, name: str, samples: int) -> Stage:
        """Stage 1 or 2 with enough epochs of so many samples for its steps."""
        first = name == STAGE1.name
        base, batch, rate = (STAGE1, self.batch1, self.rate1) if first else (STAGE2, self.batch2, self.rate2)
        epochs = float(math.ceil(self.steps(name) * batch / samples) + 1)
        return with_overrides(base, {"batch_size": batch, "learning_rate": rate, "epochs": epochs})

    def steps(self, name: str) -> int:
        return self.steps1 if name == STAGE1.name else self.steps2


@dataclass(frozen=True)
class Data:
    """captions, instructions: LLaVA JSON. items: the questions. left_out: items of the world that are not."""

    captions: Path
    instructions: Path
    items: tuple[Item, ...]
    left_out: int

    def file(self, stage: str) -> Path:
        return self.captions if stage == STAGE1.name else self.instructions


def run_row(name: str, start: Path, data: Data, course: Course, output: Path, bar: Progress) -> Row:
    """Trains and asks one model, or takes what is left of it from `output / name`."""
    folder, ablation = output / name, ABLATIONS[name]
    done = folder / _OUTCOME
    if done.is_file():
        return Row(**json.loads(done.read_text(encoding="utf-8")))
    folder.mkdir(exist_ok=True)
    if not (folder / "start").is_dir():
        write_variant(start, folder / "start", ablation, seed=course.seed)
    features = _features(start, output)
    last, stages = folder / "start" / "checkpoint", {}
    for stage in (STAGE1.name, STAGE2.name):
        stages[stage] = _run_stage(name, stage, last, data, course, folder, features, bar)
        last = folder / stage / "checkpoint"
    records = ask(last, ablation, data.items, features, lambda at, of: bar.update(f"{name}: asking", at, of))
    tokens = 1 if ablation.only else 1 + ablation.pool_grid**2
    row = Row(
        name=name,
        tokens_per_frame=tokens,
        seconds={stage: found["seconds"] for stage, found in stages.items()},
        loss={stage: found["loss"] for stage, found in stages.items()},
        records=records,
    )
    _write(done, asdict(row))
    return row


def _run_stage(
    name: str,
    stage: str,
    checkpoint: Path,
    data: Data,
    course: Course,
    folder: Path,
    features: FrameFeatures,
    bar: Progress,
) -> dict[str, float]:
    """One stage of one row, if it is not done yet: its seconds and its last loss."""
    done = folder / stage / _STAGE_DONE
    if done.is_file():
        found: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
        return found
    ablation, steps = ABLATIONS[name], course.steps(stage)
    seen: list[tuple[float, Step]] = []

    def watch(at: Step) -> None:
        seen.append((time.perf_counter(), at))
        bar.update(f"{name}: {stage}", at.step, at.steps, f"loss {at.loss:.3f}")

    train(
        stage_of(course.stage(stage, _count(data.file(stage))), ablation),
        open_checkpoint(checkpoint),
        [data.file(stage)],
        Settings(folder / stage, _MICRO_BATCH, course.seed, _SAVE_EVERY, steps=steps),
        features=features,
        ablate=lambda model: ablate(model, ablation),
        on_step=watch,
    )
    spent, counted = (seen[-1][0] - seen[0][0], len(seen) - 1) if len(seen) > 1 else (0.0, 1)
    # by the steps that were seen, as an interrupted run saw others; the first one is where it got warm
    found = {"seconds": round(spent / counted * steps, 1), "loss": seen[-1][1].loss if seen else math.nan}
    _write(done, found)
    shutil.rmtree(folder / stage / "state", ignore_errors=True)
    return found


@torch.inference_mode()
def ask(
    checkpoint: Path,
    ablation: Ablation,
    items: Sequence[Item],
    features: FrameFeatures,
    on_asked: Callable[[int, int], None] = lambda at, of: None,
) -> list[dict[str, Any]]:
    """Every question with the model's greedy answer and whether it is right, as `llamavid eval` keeps it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(checkpoint, device=device)
    ablate(model, ablation)
    records = []
    for number, item in enumerate(items, 1):
        found = features(model, _sample(item))
        assert found is not None
        ids = model.generate(found.to(device), item.question, max_new_tokens=_MAX_NEW_TOKENS)
        answer = model.language_tokenizer.text(ids).strip()
        record = {"id": item.name, "kind": item.kind, "expected": item.expected, "answer": answer}
        records.append(record | {"right": is_right(answer, item.expected)})
        on_asked(number, len(items))
    return records


def _sample(item: Item) -> Sample:
    return Sample(str(item.name), Media.VIDEO, item.media, ())


def _features(start: Path, output: Path) -> FrameFeatures:
    """One cache for all rows: no stage changes the encoder."""
    preprocessing = open_checkpoint(start / "checkpoint").config.preprocessing
    return FrameFeatures(output / "features", partial(clip_pixels, preprocessing=preprocessing, fps=1.0))


def encode(start: Path, data: Data, course: Course, output: Path, bar: Progress) -> None:
    """Encodes every clip that a step or a question will need, so that no row's time has it in it.

    The order of samples is a function of the seed and of the texts: all rows learn the same batches.
    """
    model, features = load_model(start / "checkpoint"), _features(start, output)
    samples = {item.media: _sample(item) for item in data.items}
    for stage in (STAGE1.name, STAGE2.name):
        samples |= {sample.path: sample for sample in _learned(model, stage, data, course) if sample.path}
    for number, sample in enumerate(samples.values(), 1):
        features(model, sample)
        bar.update("encoding", number, len(samples))


def _learned(model: LlamaVid, name: str, data: Data, course: Course) -> list[Sample]:
    file = data.file(name)
    stage = course.stage(name, _count(file))
    dataset = read_dataset(stage, [file], model, room=model.config.language.context_length, seed=course.seed)
    plan = planned_steps(stage, dataset.examples, seed=course.seed, steps=course.steps(name))
    return [dataset.examples[index].sample for batch in plan for index in batch]


def read_data(world: Path, heldout: Path, output: Path, course: Course) -> Data:
    """The training data as all rows see it, and questions by chance, of all kinds."""
    captions, instructions, left_out = shared_data(world, output / "data", most_seconds=MOST_SECONDS)
    file = heldout / "questions.json"
    every = read_data_set(file).items
    seconds = {item["id"]: item["seconds"] for item in json.loads(file.read_text(encoding="utf-8"))}
    fitting = [item for item in every if seconds[item.name] <= MOST_SECONDS]
    if not fitting:
        raise UsageError(f"{file} has no question about a clip of {MOST_SECONDS} s or less")
    picked = set(Random(course.seed).sample(range(len(fitting)), min(course.questions, len(fitting))))
    items = tuple(item for index, item in enumerate(fitting) if index in picked)
    return Data(captions, instructions, items, left_out)


def _count(file: Path) -> int:
    return len(json.loads(file.read_text(encoding="utf-8")))


def _check_header(output: Path, header: dict[str, Any]) -> None:
    """Rows of other settings or data are not continued. Raises `UsageError`."""
    file = output / _HEADER
    if not file.is_file():
        output.mkdir(parents=True, exist_ok=True)
        _write(file, header)
    found = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in header if found.get(name) != header[name]]
    if changed:
        raise UsageError(
            f"{output} holds rows with {changed[0]} {found.get(changed[0])!r}",
            expected=repr(header[changed[0]]),
            next_step="Continue with the same settings and data, or choose another output.",
        )


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _header(start: Path, world: Path, heldout: Path, course: Course) -> dict[str, Any]:
    weights = sorted(file for file in (start / "checkpoint").iterdir() if file.is_file())
    return {
        **asdict(course),
        "most_seconds": MOST_SECONDS,
        "start_sha256": _digest(*weights, start / "eva_vit_g.pth"),
        "world_sha256": _digest(world / "captions.json", world / "instructions.json"),
        "heldout_sha256": _digest(heldout / "questions.json"),
    }


def _write(file: Path, document: dict[str, Any]) -> None:
    beside = file.with_suffix(".partial")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    beside.replace(file)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    course = Course(options.steps1, options.steps2, seed=options.seed, questions=options.questions)
    header = _header(options.start, options.world, options.heldout, course)
    _check_header(options.output, header)
    data = read_data(options.world, options.heldout, options.output, course)
    if data.left_out:
        remark(f"{data.left_out} items about clips over {MOST_SECONDS} s are left out for every row")
    rows: list[Row] = []
    with Progress() as bar:
        encode(options.start, data, course, options.output, bar)
        for name in options.rows:
            rows.append(run_row(name, options.start, data, course, options.output, bar))
            bar.close()
            right = sum(record["right"] for record in rows[-1].records)
            remark(f"{name}: {right} of {len(rows[-1].records)} right")
    print(publish(rows, header | {"left_out": data.left_out}, options.results))


def _parser() -> Parser:
    made = Parser(
        prog="python -m benchmarks.paper_tables", description="The paper's Tables 6, 7 and 8, tiny."
    )
    add, default = made.add_argument, Course()
    add("start", type=Path, metavar="START", help="what llamavid.train.tiny_pretraining wrote")
    add("world", type=Path, metavar="WORLD", help="the little world's train split")
    add("heldout", type=Path, metavar="HELDOUT", help="its heldout split")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="where rows are kept")
    add("--steps1", type=int, default=default.steps1, metavar="N", help="of stage 1 (default: %(default)s)")
    add("--steps2", type=int, default=default.steps2, metavar="N", help="of stage 2 (default: %(default)s)")
    add("--questions", type=int, default=default.questions, metavar="N", help="asked (default: %(default)s)")
    add("--seed", type=int, default=default.seed)
    add("--rows", nargs="+", choices=ABLATIONS, default=list(ABLATIONS), metavar="ROW", help="default: all")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="for the page (default: results)")
    return made


if __name__ == "__main__":
    sys.exit(main())
