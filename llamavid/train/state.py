"""What a run keeps on disk to be continued: weights, optimizer, random numbers, and how far it is.

OUTPUT/state/       the last good state; `run.json` says which run it is of and how many steps are done
OUTPUT/loss.csv     the curve, a line a step

A state is written beside, then renamed, and the one before goes last: a run that is killed, or whose disk is
full, while it saves keeps the state before.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from llamavid.errors import LlamaVidError, UsageError

STATE = "state"
_NOTE = "run.json"  # written last: a state that has it is whole


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes `path`.

    Raises:
        LlamaVidError: it failed; PyTorch and safetensors each say a full disk in their own way.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error).partition("\n")[0]
        raise LlamaVidError(
            f"{path} cannot be written ({reason})",
            next_step="Make room and start the run again: it goes on from the last saved state.",
        ) from error


def save_state(accelerator: Accelerator, output: Path, note: Mapping[str, Any]) -> None:
    """Saves what `restore_state` needs; every process calls it. Raises as `writing`."""
    state, fresh, old = (output / f"{STATE}{end}" for end in ("", ".partial", ".old"))
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        with writing(fresh):
            accelerator.save_state(str(fresh))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                (fresh / _NOTE).write_text(json.dumps(note), encoding="utf-8")
                if state.exists():
                    state.rename(old)
                fresh.rename(state)
    except LlamaVidError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)


def restore_state(accelerator: Accelerator, output: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the saved state, if there is one; its note, or {}.

    Args:
        run: what the note must say for the state to be this run's.

    Raises:
        UsageError: the state is another run's.
    """
    state = next((found for found in _states(output) if (found / _NOTE).is_file()), None)
    if state is None:
        return {}
    note: dict[str, Any] = json.loads((state / _NOTE).read_text(encoding="utf-8"))
    for name, value in run.items():
        if note.get(name, value) != value:
            raise UsageError(
                f"{output} holds a run with {name} {note[name]!r}",
                expected=f"{value!r}, as these data and settings give",
                next_step="Continue with the same ones, or choose another output.",
            )
    accelerator.load_state(str(state))
    return note


def _states(output: Path) -> list[Path]:
    """Newest first, as a run that was killed between two renames leaves them."""
    return [output / f"{STATE}{end}" for end in ("", ".partial", ".old")]


def log_line(file: Path, line: Mapping[str, Any]) -> None:
    """Appends to the curve. Raises as `writing`."""
    with writing(file), file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, line, lineterminator="\n")
        if lines.tell() == 0:
            writer.writeheader()
        writer.writerow(line)


def cut_curve(file: Path, done: int) -> None:
    """Drops the lines of steps that come again, and one that was half written."""
    if not file.exists():
        return
    with writing(file):
        head, *lines = file.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        steps = ((line.partition(",")[0], line) for line in lines if line.endswith("\n"))
        kept = [line for step, line in steps if step.isdigit() and int(step) <= done]
        beside = file.with_suffix(".partial")
        beside.write_text("".join([head, *kept]) if kept else "", encoding="utf-8")
        beside.replace(file)
