"""Watchers of a part's products: what is kept of each input, in two looks.

The first takes figures of channels, a sample of rows and magnitudes as the model has them. The second, where
a migration was chosen, magnitudes as they are after it. Knows no formats and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamavid.calibration.histogram import ChannelStatistics, Histogram
from llamavid.calibration.inputs import Input
from llamavid.calibration.observed import SAMPLE_ROWS, Cached, Seen
from llamavid.errors import ScalesError
from llamavid.model.watching import KEYS, VALUES, require_numbers

Array = npt.NDArray[np.float32]


class FirstLook:
    """A `Watcher` of the inputs of one part of graph `graph`.

    energies: by input, float64 [K]: what the weights of each channel weigh (`histogram`, Note [Weights]).
    """

    kinds = ("inputs", KEYS, VALUES)

    def __init__(self, graph: str, inputs: Sequence[Input], energies: Mapping[str, Tensor]) -> None:
        self.graph = graph
        self.inputs = inputs
        self._energies = energies
        self._keys: dict[str, float] = {}  # by attention, as `Cached`
        self._values: dict[str, Tensor] = {}
        self._tensors: dict[str, _Tensor | None] = {found.name: None for found in inputs}

    def see(self, kind: str, name: str, values: Tensor) -> None:
        """Raises `CheckpointError` for what is no number."""
        if kind in (KEYS, VALUES):
            largest = _largest(values, f"the cache of {name} of graph {self.graph}")
            if kind == KEYS:
                self._keys[name] = max(largest, self._keys.get(name, 0.0))
            else:
                channels = values.abs().flatten(0, -2).amax(0)
                self._values[name] = torch.maximum(channels, self._values.get(name, channels))
        elif name in self._tensors:
            _largest(values, f"what enters {name} of graph {self.graph}")
            tensor = self._tensors[name] or _Tensor(values.shape[-1], self._energies.get(name))
            self._tensors[name] = tensor
            tensor.add(values)

    @property
    def cached(self) -> dict[str, Cached]:
        """By attention."""
        return {name: Cached(key, self._values[name].numpy()) for name, key in self._keys.items()}

    def seen(self) -> list[Seen]:
        """Of every input.

        Raises:
            ScalesError: one never varied, or a cache was always 0.
        """
        for name, cached in self.cached.items():
            if not cached.largest():
                raise _constant(f"the cache of {name}", self.graph, "always 0")
        return [self._seen(found) for found in self.inputs]

    def _seen(self, found: Input) -> Seen:
        tensor = self._tensors[found.name]
        assert tensor, f"{found.name} was never entered"
        if not tensor.histogram.largest:
            raise _constant(f"what enters {found.name}", self.graph, "always 0")
        if tensor.channels.rows > 1 and not tensor.varies:
            raise _constant(
                f"what enters {found.name}", self.graph, f"the same in {tensor.channels.rows} rows"
            )
        sample = tensor.sample.rows()
        rows = 1 if self.graph == "llm" else tensor.rows
        return Seen(found.readers, tensor.histogram, tensor.channels, sample, None, rows)


class SecondLook:
    """A `Watcher` that counts the magnitudes of divided inputs.

    divisors: by input, float32 [K]. energies: of the weights as they are after migration.
    """

    kinds = ("inputs",)

    def __init__(self, divisors: Mapping[str, Array], energies: Mapping[str, Tensor]) -> None:
        self._energies = energies
        self._divisors = {name: torch.from_numpy(divisor) for name, divisor in divisors.items()}
        self.histograms = {name: Histogram() for name in divisors}

    def see(self, kind: str, name: str, values: Tensor) -> None:
        if name in self._divisors:
            self.histograms[name].add(values / self._divisors[name], self._energies.get(name))


class RowSample:
    """At most `SAMPLE_ROWS` of the rows that come, by chance: those whose number, hashed, is least.

    However they come in batches, the same rows are taken.
    """

    def __init__(self) -> None:
        self._count = 0
        self._numbers = np.empty(0, np.uint64)
        self._rows = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """rows [n, K]."""
        numbers = np.arange(self._count, self._count + len(rows), dtype=np.uint64)
        self._count += len(rows)
        among = np.sort(_least(numbers))
        taken = rows[torch.from_numpy((among - numbers[:1]).astype(np.int64))]
        both = np.concatenate([self._numbers, among])
        stay = np.sort(np.argsort(_mixed(both), kind="stable")[:SAMPLE_ROWS])
        self._numbers = both[stay]
        self._rows = torch.cat([self._rows, taken])[torch.from_numpy(stay)] if len(self._rows) else taken

    def rows(self) -> Array:
        """float32 [<= SAMPLE_ROWS, K], in the order in which they came."""
        return np.ascontiguousarray(self._rows.numpy(), np.float32)


class _Tensor:
    """Everything of one input."""

    def __init__(self, width: int, energies: Tensor | None) -> None:
        self.histogram = Histogram()
        self._energies = energies
        self.channels = ChannelStatistics(width)
        self.sample = RowSample()
        self.rows = 0  # of one frame
        self.varies = False
        self._first: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """[..., R, K]"""
        rows = values.reshape(-1, values.shape[-1])
        self.rows = max(self.rows, values.shape[-2])
        self.histogram.add(rows, self._energies)
        self.channels.add(rows)
        self.sample.add(rows)
        self._first = rows[:1].clone() if self._first is None else self._first
        self.varies = self.varies or bool((rows != self._first).any())


def _largest(values: Tensor, what: str) -> float:
    least, most = (float(end) for end in torch.aminmax(values))
    largest = max(-least, most)
    require_numbers(largest, what)
    return largest


def _constant(what: str, graph: str, how: str) -> ScalesError:
    return ScalesError(
        f"{what} of graph {graph} is {how}",
        expected="activations that vary",
        next_step="Calibrate with clips that show something; if they do, the checkpoint may be damaged.",
    )


def _least(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Those of the least hashes, `SAMPLE_ROWS` of them."""
    if len(numbers) <= SAMPLE_ROWS:
        return numbers
    return numbers[np.argpartition(_mixed(numbers), SAMPLE_ROWS)[:SAMPLE_ROWS]]


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash without collisions: the last step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
