"""Where a pass over the model was, on disk: an interrupted run goes on from there.

At EVA-g's size the branches of two frames grow to 460 MB, and all blocks take six minutes on two cores. So
they are written at most once a minute: an interruption costs a minute, and the disk gets 2 GB in all where a
file a block would be 9. State that is damaged, or of another pass, is left out: the pass then begins anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llamavid.calibration.arrays import UNREADABLE
from llamavid.calibration.branches import Branches
from llamavid.errors import ScalesError
from llamavid.replacing import replacing

_EXACT = "exact"


@dataclass
class BranchState:
    """One pass.

    Args:
        key: sha256 of all that decides the branches; state with another one is of another pass.
        every_seconds: at least so long between two writes.
    """

    file: Path
    key: str
    every_seconds: float = 60.0
    _written: float = field(default_factory=time.monotonic)

    def load(self) -> tuple[int, Branches] | None:
        """Parts that are done, and the branches there; None: nothing that fits."""
        try:
            with np.load(self.file, allow_pickle=False) as arrays:
                if str(arrays["key"]) != self.key:
                    return None
                return int(arrays["done"]), _branches({name: arrays[name] for name in arrays.files})
        except UNREADABLE:
            return None  # there is none, or half of one

    def save(self, done: int, branches: Branches) -> None:
        """Writes, unless that was done a moment ago. Raises `ScalesError` where it cannot be written."""
        if time.monotonic() - self._written < self.every_seconds:
            return
        arrays = {_EXACT: branches.exact, **{str(index): items for index, items in branches.own.items()}}
        named = {
            f"{name}.{at}": item.numpy() for name, items in arrays.items() for at, item in enumerate(items)
        }
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as beside, beside.open("wb") as stream:
                np.savez(stream, key=np.array(self.key), done=np.array(done), **named)  # type: ignore[arg-type]
        except OSError as error:
            raise ScalesError(
                f"{self.file} cannot be written ({error.strerror})", next_step="Choose another place."
            ) from error
        self._written = time.monotonic()

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)


def _branches(arrays: dict[str, np.ndarray]) -> Branches:
    """Raises `ValueError` or `KeyError` for arrays that are no branches."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name in arrays.keys() - {"key", "done"}:
        branch, _, at = name.partition(".")
        found.setdefault(branch, {})[int(at)] = torch.from_numpy(arrays[name])
    items = {branch: tuple(tensors[at] for at in range(len(tensors))) for branch, tensors in found.items()}
    exact = items.pop(_EXACT)
    return Branches(exact, {int(branch): items[branch] for branch in sorted(items, key=int)})
