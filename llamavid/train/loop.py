"""One stage of training: from a checkpoint and LLaVA JSON to a checkpoint in the release layout.

    train(STAGE1, open_checkpoint(...), [Path("captions.json")], Settings(output=Path("out")), features=...)

One path from one CPU process to many GPUs: accelerate starts what it is launched with, and a batch is the
same samples and the same sum of losses however many processes share it.

    llamavid train stage2 --config stage2.json
    accelerate launch --multi_gpu --num_processes 8 -m llamavid train stage2 --config stage2.json
    accelerate launch --config_file llamavid/train/zero2.yaml --num_processes 8 \\
        -m llamavid train stage2 --config stage2.json
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m llamavid train stage2 --config stage2.json

The third is DeepSpeed ZeRO-2; Note [DeepSpeed] in `processes.py` says what is tested of it. The last one is
two CPU processes, of which `accelerate launch --cpu` would start one.

An interrupted run continues exactly: its state is the weights, the optimizer's, the number of steps done and
the broken samples found; the order of samples is a function of the seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from llamavid.errors import LlamaVidError, SourceError, UsageError
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.train.dataset import BrokenReport, planned_steps, read_dataset
from llamavid.train.examples import Broken, Example, Sample
from llamavid.train.forward import Item, Loss
from llamavid.train.outcome import CURVE, RECORD, plot_curve, write_outcome
from llamavid.train.processes import agreed, backward, new_accelerator, precision_of, prepared
from llamavid.train.stages import Stage, with_context
from llamavid.train.state import STATE, cut_curve, log_line, restore_state, save_state

Features = Callable[[LlamaVid, Sample], Tensor | None]  # what a sample's media shows, [T, R, C]

_BROKEN = "broken.json"


@dataclass(frozen=True)
class Settings:
    """How a run goes; what it learns is the stage's.

    Args:
        micro_batch: samples a process computes at once.
        save_every: steps between two saved states.
        broken_limit: fraction of broken samples above which the run stops.
        steps: stop early, for trials; None runs the stage's epochs.
        gradient_checkpointing: compute activations twice, to keep fewer.
        precision: of matrix products: fp32, bf16, or auto, which is bf16 on a GPU that has it.
    """

    output: Path
    micro_batch: int = 8
    seed: int = 0
    save_every: int = 500
    broken_limit: float = 0.01
    steps: int | None = None
    gradient_checkpointing: bool = False
    precision: str = "auto"


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
    ablate: Callable[[LlamaVid], None] = lambda model: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Runs a stage to its end, or continues it, and writes `settings.output / "checkpoint"`.

    Args:
        features: raises `SourceError` for a sample whose media cannot be read; Note [Broken samples].
        ablate: takes something from the model before it learns; `ablation.ablate`.
        on_step: called after every step, by the main process alone.

    Raises:
        UsageError: the data is not usable, or the checkpoint is not the stage's predecessor.
        LlamaVidError: the loss is not a number, or a file cannot be written; the last saved state stays.
    """
    # 1) what there is to learn
    _check_predecessor(stage, checkpoint)
    checkpoint = with_context(stage, checkpoint)
    accelerator = new_accelerator(settings.precision, micro_batch=settings.micro_batch)
    model = model_from_checkpoint(checkpoint).train()
    ablate(model)
    room = min(stage.max_tokens, checkpoint.config.language.context_length)
    dataset = read_dataset(stage, data, model, room=room, seed=settings.seed)
    plan = planned_steps(stage, dataset.examples, seed=settings.seed, steps=settings.steps)
    settings.output.mkdir(parents=True, exist_ok=True)
    report = BrokenReport(
        settings.output / _BROKEN, dataset, limit=settings.broken_limit, writes=accelerator.is_main_process
    )

    # 2) who learns, and how far they are
    stage.freeze(model)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(learned, lr=stage.learning_rate, weight_decay=stage.weight_decay)
    loss, optimizer = prepared(
        accelerator, Loss(model, gradient_checkpointing=settings.gradient_checkpointing), adamw
    )
    run = {"stage": stage.name, "steps": len(plan), "samples": len(dataset.examples), "seed": settings.seed}
    note = restore_state(accelerator, settings.output, run)
    report.restore(note.get("broken", []))
    if accelerator.is_main_process:
        cut_curve(settings.output / CURVE, note.get("done", 0))

    # 3) learn
    for step in range(note.get("done", 0), len(plan)):
        rate = learning_rate(stage, step, len(plan))
        for group in optimizer.param_groups:
            group["lr"] = rate
        mine = plan[step][accelerator.process_index :: accelerator.num_processes]
        usable = {index: dataset.examples[index] for index in mine if index not in report.found}
        items, broken = _loaded(usable, lambda sample: features(model, sample), model, room)
        tokens, broken = agreed(accelerator, sum(item.example.learned_tokens for item in items), broken)
        report.add(broken)
        if tokens:
            value = backward(
                accelerator,
                loss,
                items,
                samples=len(plan[step]),
                tokens=tokens,
                micro_batch=settings.micro_batch,
            )
            norm = _step(accelerator, optimizer, learned, value, step + 1, settings.output)
            if accelerator.is_main_process:
                progress = Progress(step + 1, len(plan), value, rate, norm)
                log_line(settings.output / CURVE, asdict(progress))
                on_step(progress)
        if (step + 1) % settings.save_every == 0 and step + 1 < len(plan):
            save_state(accelerator, settings.output, {**run, "done": step + 1, "broken": report.to_json()})

    # 4) leave it
    if accelerator.is_main_process:
        found = len(dataset.broken) + len(report.found)
        record = _record(stage, data, settings, accelerator) | {"broken_samples": found}
        unwrapped = accelerator.unwrap_model(loss).model
        write_outcome(settings.output, checkpoint, unwrapped, bert_type=stage.bert_type, record=record)
        if (settings.output / CURVE).is_file():
            plot_curve(settings.output)
    accelerator.wait_for_everyone()
    return settings.output / "checkpoint"


def _record(
    stage: Stage, data: Sequence[Path], settings: Settings, accelerator: Accelerator
) -> dict[str, object]:
    """What `training.json` says of how the run went."""
    return {
        "stage": stage.name,
        "data": [str(file) for file in data],
        "seed": settings.seed,
        "precision": precision_of(accelerator),
        "processes": accelerator.num_processes,
        "settings": asdict(stage),
        "run": {**asdict(settings), "output": str(settings.output)},
    }


def learning_rate(stage: Stage, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, math.ceil(stage.warmup * steps))
    if step < warmup:
        return stage.learning_rate * (step + 1) / warmup
    return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _loaded(
    examples: dict[int, Example], features: Callable[[Sample], Tensor | None], model: LlamaVid, room: int
) -> tuple[list[Item], dict[int, Broken]]:
    """Examples with their media, which stays on the disk until it is used; and those that have none.

    The shortest first: a micro batch is padded little.
    """
    items: list[tuple[int, Item]] = []
    broken: dict[int, Broken] = {}
    for index, example in examples.items():
        try:
            item = Item(example, features(example.sample))
        except (SourceError, OSError) as error:  # what cannot be written is neither
            broken[index] = Broken(example.sample.name, str(error))
            continue
        length = example.length(item.rows(model.config.tokens_per_frame))
        if length > room:
            broken[index] = Broken(example.sample.name, f"its sequence has {length} tokens, more than {room}")
        else:
            items.append((length, item))
    return [item for _, item in sorted(items, key=itemgetter(0))], broken


def _step(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    learned: Sequence[nn.Parameter],
    value: float,
    step: int,
    output: Path,
) -> float:
    """One step of the optimizer; the norm of the gradients before they were clipped."""
    if not math.isfinite(value):
        saved = (output / STATE).is_dir()
        kept = f"The last saved state is in {output / STATE}; lower" if saved else "Lower"
        raise LlamaVidError(f"the loss of step {step} is {value}", next_step=f"{kept} the learning rate.")
    norm = float(accelerator.clip_grad_norm_(learned, 1.0) or 0.0)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def _check_predecessor(stage: Stage, checkpoint: Checkpoint) -> None:
    """A checkpoint of ours says which stage made it; a published one may start any."""
    record = checkpoint.folder.parent / RECORD
    if not record.is_file():
        return
    made_by = json.loads(record.read_text(encoding="utf-8")).get("stage")
    if made_by != stage.follows:
        raise UsageError(
            f"{checkpoint.folder} was made by {made_by or 'llamavid.train.start'}",
            expected=f"an outcome of {stage.follows or 'no stage'} to start {stage.name}",
        )
