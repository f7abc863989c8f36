"""What a run of calibration leaves after every part, so that an interrupted one goes on where it ended.

    observed/run.json                  of which run: another one's folder is refused
    observed/vision.blocks.3.npz       what was seen in that part; there is one only when all of it is
    observed/activations.3.npz         what leaves part 3, the last that is finished

Knows no model: parts are names in an order. Everything is written beside and renamed.

Note [Going on]
    What leaves a part is written before what was seen in it, and what left the one before is removed after
    that: whenever a run is killed, the parts that are finished are those with a file, and what enters the
    next one is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.calibration.arrays import read_arrays, write_arrays
from llamavid.errors import ScalesError
from llamavid.replacing import replacing

RUN = "run.json"
_ACTIVATIONS = "activations"

Array = npt.NDArray[np.float32]
Identity = Mapping[str, Any]  # by the words that people read: JSON values


class RunFolder:
    """The state of one run."""

    def __init__(self, folder: Path, identity: Identity, *, replace: bool = False) -> None:
        """Opens or makes the folder.

        Args:
            identity: what the state depends on; a folder of anything else is refused.
            replace: throw such a folder's state away instead.

        Raises:
            ScalesError: it is of another run, holds something else, or cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for half in folder.glob(".*.npz.*"):  # written beside, by a run that was killed
                half.unlink()
            if _is_of(folder, identity, replace):
                return
            for file in folder.glob("*.npz"):
                file.unlink()
            with replacing(folder / RUN) as beside:
                beside.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(folder, error) from error

    def first_unfinished(self, parts: Sequence[str], giving: Sequence[int]) -> int:
        """Where to go on: a number of `parts`, or their count.

        Args:
            giving: numbers of the parts whose activations later ones need.
        """
        done = next((n for n, name in enumerate(parts) if not self._file(name).exists()), len(parts))
        while 0 < done < len(parts) and not self._activations(last_before(done, giving)).exists():
            done -= 1
        return done

    def seen(self, part: str) -> dict[str, npt.NDArray[Any]]:
        """What `finish` was given. Raises `ScalesError` where it is damaged."""
        return read_arrays(self._file(part))

    def activations(self, number: int) -> list[Array]:
        """What left that part. Raises `ScalesError` where it is damaged."""
        arrays = read_arrays(self._activations(number))
        return [np.asarray(arrays[name], np.float32) for name in sorted(arrays)]

    def finish(
        self, part: str, seen: Mapping[str, npt.NDArray[Any]], number: int, leaving: Sequence[Array] | None
    ) -> None:
        """Note [Going on].

        Args:
            leaving: what later parts need of this one; None: they need what was there before.

        Raises:
            ScalesError: the disk is full, or the folder may not be written.
        """
        try:
            if leaving is not None:
                named = {f"{index:06}": array for index, array in enumerate(leaving)}
                write_arrays(self._activations(number), named)
            write_arrays(self._file(part), seen)
            if leaving is not None:
                self._remove_activations(but=number)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def complete(self) -> None:
        """No part needs activations any more."""
        self._remove_activations(but=None)

    def _file(self, part: str) -> Path:
        return self.folder / f"{part}.npz"

    def _activations(self, number: int) -> Path:
        return self.folder / f"{_ACTIVATIONS}.{number}.npz"

    def _remove_activations(self, *, but: int | None) -> None:
        for file in self.folder.glob(f"{_ACTIVATIONS}.*.npz"):
            if but is None or file != self._activations(but):
                file.unlink()


def last_before(number: int, giving: Sequence[int]) -> int:
    """The part whose activations part `number` needs."""
    return max(part for part in giving if part < number)


def _is_of(folder: Path, identity: Identity, replace: bool) -> bool:
    """Whether the folder holds the state of that run; raises where it holds another thing that must stay."""
    file = folder / RUN
    if not file.exists():
        if foreign := [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]:
            raise ScalesError(
                f"{folder} holds {sorted(foreign)[0]!r:.80} and no {RUN}",
                expected="a folder of calibration's, or none",
                next_step="Choose another -o.",
            )
        return False
    found = _identity(file)
    differing = [what for what in identity if found.get(what) != json.loads(json.dumps(identity[what]))]
    if differing and not replace:
        raise ScalesError(
            f"{folder} is of a run with other {' and '.join(differing)}",
            expected="the same",
            next_step="Pass --replace to begin anew, or choose another -o.",
        )
    return not differing


def _identity(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _unwritable(folder: Path, error: OSError) -> ScalesError:
    return ScalesError(f"{folder} cannot be written ({error.strerror})", next_step="Choose another -o.")
