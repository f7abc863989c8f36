"""One path from one CPU process to many GPUs: what the processes of a run do together.

Note [A batch over processes]
    Each process takes every n-th sample of a batch, in as many parts as every other, so that they meet at
    every part: with ZeRO-2 gradients go between them after each. One that has fewer samples fills up with
    a text whose loss counts nothing. Gradients are averaged over processes, so each loss is weighted with
    their number over the learned tokens of the whole batch.

Note [DeepSpeed]
    Its engine clips gradients and steps within the backward pass of the last part; `clip_grad_norm_` gives
    its norm, `step` and `zero_grad` of the optimizer are then empty. Which part is the last one it is told
    through `sync_gradients`, since its gradients cannot stay unsynchronized. It casts every weight to
    bfloat16, the frozen encoder's too, and keeps float32 originals of those that learn. Tested so far: that
    accelerate takes the configuration, and this code on CPU processes; no GPU has seen ZeRO-2 run it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object
from torch import nn

from llamavid.errors import UsageError
from llamavid.train.examples import IGNORED, Broken, Example, Media, Sample
from llamavid.train.forward import Item, Loss

PRECISIONS = ("auto", "fp32", "bf16")
_LONGEST_WAIT = timedelta(hours=2)  # for a process that encodes a long clip


def new_accelerator(precision: str, *, micro_batch: int) -> Accelerator:
    """What this process was launched into. Learned weights and sums are float32 in any precision.

    Args:
        precision: of matrix products, one of PRECISIONS; auto is bf16 on a GPU that has it, else fp32.

    Raises:
        UsageError: no such precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} does not exist", expected=", ".join(PRECISIONS))
    AcceleratorState._reset_state()  # else it insists on the precision of this process's first run
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    has_bf16 = not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    is_bf16 = precision == "bf16" or (precision == "auto" and has_bf16)
    accelerator = Accelerator(
        mixed_precision="bf16" if is_bf16 else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
    )
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        engine = accelerator.state.deepspeed_plugin.deepspeed_config
        engine["train_micro_batch_size_per_gpu"] = micro_batch
        engine["gradient_clipping"] = 1.0
    return accelerator


def precision_of(accelerator: Accelerator) -> str:
    """fp32 or bf16."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def prepared(
    accelerator: Accelerator, loss: Loss, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Both as the launch wants them, on this process's device. RoPE's table stays float32.

    DeepSpeed casts it to bfloat16 with the weights, which far positions do not survive, and a checkpoint that
    is loaded again has it in float32.
    """
    table = loss.model.language.model.rotary_emb
    exact = table.inv_freq.clone()
    made, optimizer = accelerator.prepare(loss, optimizer)
    table.inv_freq = exact.to(accelerator.device)
    return made, optimizer


def agreed(
    accelerator: Accelerator, learned: int, broken: dict[int, Broken]
) -> tuple[int, dict[int, Broken]]:
    """Learned tokens and broken samples of all processes together."""
    counts = torch.tensor([learned, len(broken)], device=accelerator.device)
    tokens, many = accelerator.reduce(counts, "sum").tolist()
    return int(tokens), dict(gather_object(list(broken.items()))) if many else {}


def backward(
    accelerator: Accelerator,
    loss: nn.Module,
    items: Sequence[Item],
    *,
    samples: int,
    tokens: int,
    micro_batch: int,
) -> float:
    """Gradients of a batch's mean loss over its learned tokens; that loss. Note [A batch over processes].

    Args:
        items: those of this process.
        samples: of the whole batch, broken ones too.
        tokens: learned ones of the whole batch.
    """
    parts = math.ceil(math.ceil(samples / accelerator.num_processes) / micro_batch)
    total = torch.zeros((), device=accelerator.device)
    for index in range(parts):
        accelerator.gradient_state._set_sync_gradients(index == parts - 1)
        mine = items[index * micro_batch : (index + 1) * micro_batch]
        weight = accelerator.num_processes / tokens if mine else 0.0
        if accelerator.sync_gradients:
            total += _part(accelerator, loss, mine, weight)
        else:
            with accelerator.no_sync(loss):
                total += _part(accelerator, loss, mine, weight)
    return float(accelerator.reduce(total, "sum")) / tokens


def _part(accelerator: Accelerator, loss: nn.Module, items: Sequence[Item], weight: float) -> torch.Tensor:
    """Sum of the losses; gradients of it times `weight`."""
    summed: torch.Tensor = loss(items or [_FILLER])
    accelerator.backward(summed * weight)
    return summed.detach() * bool(items)


_FILLER = Item(
    Example(Sample("", Media.TEXT, None, ()), np.array([1, 2]), np.array([IGNORED, 2]), prompts=()), None
)
