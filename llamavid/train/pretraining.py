"""The loop that the tiny model's parts are pretrained by, before the three stages.

In rounds: each has its own seed, and leaves its state behind. A run that was killed goes on after its last
whole round, and gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Task(Generic[Batch]):
    """What is learned, and from what.

    learner: all weights that learn, and none that do not.
    batches: for a seed, batches without end.
    loss: of a batch, a mean: a scalar.
    examine: how good it is at what it was taught for, by name, on so many held-out scenes.
    """

    learner: nn.Module
    batches: Callable[[int], Iterator[Batch]]
    loss: Callable[[Batch], Tensor]
    examine: Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Schedule:
    """How long, and how fast. AdamW; the rate climbs for a twentieth of the steps, then falls as a cosine."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.05
    round_steps: int = 250
    seed: int = 0


def pretrain(
    task: Task[Batch],
    plan: Schedule,
    *,
    state: Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Teaches `task.learner` in bfloat16 arithmetic on float32 weights.

    Args:
        state: a file to continue from, if it is there, and to save every round to.
        on_step: gets the number of steps done and the loss.
    """
    weights = list(task.learner.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, total_steps=plan.steps, pct_start=0.05
    )
    parts: dict[str, _Keeps] = {"learner": task.learner, "optimizer": optimizer, "schedule": schedule}
    device = weights[0].device.type
    for done in range(_restore(state, parts), plan.steps, plan.round_steps):
        seed = plan.seed * 10_000 + done
        torch.manual_seed(seed)
        count = min(plan.round_steps, plan.steps - done)
        for step, batch in enumerate(islice(task.batches(seed), count), start=done + 1):
            with torch.autocast(device, torch.bfloat16):
                loss = task.loss(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            on_step(step, loss.item())
        _save(state, {"done": done + count, **{name: part.state_dict() for name, part in parts.items()}})


class _Keeps(Protocol):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


def _restore(state: Path | None, parts: Mapping[str, _Keeps]) -> int:
    """The steps that were done."""
    if state is None or not state.is_file():
        return 0
    saved = torch.load(state, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return int(saved["done"])


def _save(state: Path | None, saved: dict[str, object]) -> None:
    """Beside, then renamed."""
    if state is not None:
        beside = state.with_suffix(".partial")
        torch.save(saved, beside)
        beside.replace(state)
