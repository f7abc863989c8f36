"""One stage of training: from a checkpoint and LLaVA JSON to a checkpoint in the release layout.

    train(STAGE1, open_checkpoint(...), [Path("captions.json")], Settings(output=Path("out")), features=...)

One path from one CPU process to many GPUs: accelerate starts what it is launched with
(DDP, DeepSpeed ZeRO-2). A batch is the same samples and the same sum of losses however
many processes share it. An interrupted run continues exactly: its state is the weights,
the optimizer's and the number of steps done; the order of samples is a function of the seed.
"""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from llamavid.errors import LlamaVidError, UsageError
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.train.batches import batches
from llamavid.train.examples import IGNORED, Broken, Example, Sample, example, read_samples
from llamavid.train.forward import Item, Loss
from llamavid.train.outcome import CURVE, RECORD, plot_curve, write_outcome
from llamavid.train.stages import Stage

Features = Callable[[LlamaVid, Sample], Tensor | None]  # what a sample's media shows, [T, R, C]

_STATE, _BROKEN = "state", "broken.json"


@dataclass(frozen=True)
class Settings:
    """How a run goes; what it learns is the stage's.

    Args:
        micro_batch: samples a process computes at once.
        save_every: steps between two saved states.
        broken_limit: fraction of broken samples above which the run does not start.
        steps: stop early, for trials; None runs the stage's epochs.
    """

    output: Path
    micro_batch: int = 8
    seed: int = 0
    save_every: int = 500
    broken_limit: float = 0.01
    steps: int | None = None
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Progress:
    """One step's line in the curve."""

    step: int
    steps: int
    loss: float  # mean over the batch's learned tokens
    learning_rate: float
    gradient_norm: float


def train(
    stage: Stage,
    checkpoint: Checkpoint,
    data: Sequence[Path],
    settings: Settings,
    *,
    features: Features,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Runs a stage to its end, or continues it, and writes `settings.output / "checkpoint"`.

    Raises:
        UsageError: the data is not usable, or the checkpoint is not the stage's predecessor.
        LlamaVidError: the loss is not a number; the last saved state stays.
    """
    _check_predecessor(stage, checkpoint)
    accelerator = Accelerator()
    model = model_from_checkpoint(checkpoint).train()
    examples = _examples(stage, data, settings, model)
    stage.freeze(model)
    if settings.gradient_checkpointing:
        model.language.gradient_checkpointing_enable()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=stage.learning_rate, weight_decay=stage.weight_decay)
    loss, optimizer = accelerator.prepare(Loss(model), optimizer)
    plan = _plan(stage, examples, settings)
    done = _restored(accelerator, settings, len(plan))
    for step in range(done, len(plan)):
        rate = learning_rate(stage, step, len(plan))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = [examples[index] for index in plan[step]]
        value = _backward(
            accelerator, loss, batch, settings.micro_batch, lambda one: features(model, one.sample)
        )
        if not math.isfinite(value):
            raise LlamaVidError(
                f"the loss of step {step + 1} is {value}",
                next_step=f"The last saved state is in {settings.output / _STATE}; lower the learning rate.",
            )
        norm = float(accelerator.clip_grad_norm_(learned, 1.0))
        optimizer.step()
        optimizer.zero_grad()
        progress = Progress(step + 1, len(plan), value, rate, norm)
        if accelerator.is_main_process:
            _log(settings.output / CURVE, progress)
            on_step(progress)
        if (step + 1) % settings.save_every == 0 and step + 1 < len(plan):
            _save_state(accelerator, settings, step + 1, len(plan))
    if accelerator.is_main_process:
        record = {"stage": stage.name, "data": [str(file) for file in data], "seed": settings.seed}
        write_outcome(
            settings.output,
            checkpoint,
            accelerator.unwrap_model(loss).model,
            bert_type=stage.bert_type,
            record={**record, "settings": asdict(stage)},
        )
        plot_curve(settings.output)
    accelerator.wait_for_everyone()
    return settings.output / "checkpoint"


def learning_rate(stage: Stage, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, math.ceil(stage.warmup * steps))
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _backward(
    accelerator: Accelerator,
    loss: torch.nn.Module,
    batch: Sequence[Example],
    micro_batch: int,
    features: Callable[[Example], Tensor | None],
) -> float:
    """Gradients of the batch's mean loss over its learned tokens, whoever computes which part of it."""
    tokens = sum(int((one.labels != IGNORED).sum()) for one in batch)
    mine = batch[accelerator.process_index :: accelerator.num_processes]
    weight = accelerator.num_processes / tokens if mine else 0.0  # gradients are averaged over processes
    parts = [mine[i : i + micro_batch] for i in range(0, len(mine), micro_batch)] or [batch[:1]]
    total = torch.zeros((), device=accelerator.device)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with nullcontext() if last else accelerator.no_sync(loss):
            summed = loss([Item(one, features(one)) for one in part])
            accelerator.backward(summed * weight)
        total += summed.detach() if mine else 0
    return float(accelerator.reduce(total, "sum")) / tokens


def _check_predecessor(stage: Stage, checkpoint: Checkpoint) -> None:
    """A checkpoint of ours says which stage made it; a published one may start any."""
    record = checkpoint.folder.parent / RECORD
    if not record.is_file():
        return
    made_by = json.loads(record.read_text(encoding="utf-8")).get("stage")
    if made_by != stage.follows:
        raise UsageError(
            f"{checkpoint.folder} was made by {made_by}",
            expected=f"an outcome of {stage.follows or 'no stage'} to start {stage.name}",
        )


def _examples(stage: Stage, data: Sequence[Path], settings: Settings, model: LlamaVid) -> list[Example]:
    """Every usable sample as an example; the broken ones are listed in a file, and too many stop the run."""
    found = [read_samples(file) for file in data]
    broken = [one for _, some in found for one in some]
    chance = random.Random(settings.seed)
    examples = []
    for sample in (one for some, _ in found for one in some):
        try:
            made = example(
                sample, stage.dialogue, model.language_tokenizer, max_tokens=stage.max_tokens, chance=chance
            )
            examples.append(made)
        except ValueError as error:
            broken.append(Broken(sample.name, str(error)))
    settings.output.mkdir(parents=True, exist_ok=True)
    report = settings.output / _BROKEN
    report.write_text(json.dumps([asdict(one) for one in broken], indent=1), encoding="utf-8")
    if len(broken) > settings.broken_limit * (len(examples) + len(broken)):
        raise UsageError(
            f"{len(broken)} of {len(examples) + len(broken)} samples are broken, such as {broken[0].name!r}: "
            f"{broken[0].reason}",
            expected=f"at most {settings.broken_limit:.0%}",
            next_step=f"All are listed in {report}.",
        )
    return examples


def _plan(stage: Stage, examples: Sequence[Example], settings: Settings) -> list[list[int]]:
    """The batches of the whole run."""
    lengths = [len(one.ids) for one in examples]
    groups = [one.sample.media.value for one in examples]
    plan: list[list[int]] = []
    for epoch in range(math.ceil(stage.epochs)):
        plan += batches(lengths, groups, batch_size=stage.batch_size, seed=settings.seed, epoch=epoch)
    whole = round(len(plan) * stage.epochs / math.ceil(stage.epochs))
    return plan[: min(whole, settings.steps or whole)]


def _restored(accelerator: Accelerator, settings: Settings, steps: int) -> int:
    """Loads the saved state of this run, if there is one; the steps it had done.

    Raises:
        UsageError: the state is of a run over other data or settings.
    """
    note = settings.output / _STATE / "run.json"
    if not note.is_file():
        (settings.output / CURVE).unlink(missing_ok=True)
        return 0
    saved = json.loads(note.read_text(encoding="utf-8"))
    if saved["steps"] != steps:
        raise UsageError(
            f"{settings.output} holds a run of {saved['steps']} steps",
            expected=f"{steps}, as these data and settings give",
            next_step="Continue with the same ones, or choose another output.",
        )
    accelerator.load_state(str(note.parent))
    _cut_curve(settings.output / CURVE, saved["done"])
    return int(saved["done"])


def _save_state(accelerator: Accelerator, settings: Settings, done: int, steps: int) -> None:
    """Beside, then renamed: a run that is killed while it saves keeps the state before."""
    state, fresh = settings.output / _STATE, settings.output / f"{_STATE}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(fresh))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (fresh / "run.json").write_text(json.dumps({"done": done, "steps": steps}), encoding="utf-8")
        shutil.rmtree(state, ignore_errors=True)
        fresh.rename(state)


def _log(file: Path, progress: Progress) -> None:
    fresh = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, asdict(progress), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(asdict(progress))


def _cut_curve(file: Path, done: int) -> None:
    """Drops the lines of steps that come again."""
    if file.exists():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[: done + 1]), encoding="utf-8")
