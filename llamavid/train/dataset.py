"""From LLaVA JSON to examples and the order in which they are learned; and the samples that cannot be.

Note [Broken samples]
    They are named in OUTPUT/broken.json, with the reason, and counted; no other takes a broken one's place.
    Some show when the files are read, others (a clip that cannot be decoded, frames that do not fit) in the
    step that first needs them. More of them than the limit stop the run.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llamavid.errors import UsageError
from llamavid.model.llamavid import LlamaVid
from llamavid.train.batches import batches
from llamavid.train.examples import Broken, Example, example, read_samples
from llamavid.train.stages import Stage
from llamavid.train.state import writing


@dataclass(frozen=True)
class Dataset:
    """Usable examples, and what of the files is none."""

    examples: list[Example]
    broken: list[Broken]


def read_dataset(stage: Stage, files: Sequence[Path], model: LlamaVid, *, room: int, seed: int) -> Dataset:
    """Every sample of LLaVA JSON `files` as an example or as a broken one.

    Args:
        room: tokens that a sequence may have.

    Raises:
        UsageError: a file is not a list of items.
    """
    examples: list[Example] = []
    broken: list[Broken] = []
    chance = random.Random(seed)
    for file in files:
        samples, unreadable = read_samples(file)
        broken += unreadable
        for sample in samples:
            try:
                made = example(
                    sample,
                    stage.dialogue,
                    model.language_tokenizer,
                    max_tokens=room,
                    tokens_per_frame=model.config.tokens_per_frame,
                    chance=chance,
                )
                examples.append(made)
            except ValueError as error:
                broken.append(Broken(sample.name, str(error)))
    return Dataset(examples, broken)


def planned_steps(
    stage: Stage, examples: Sequence[Example], *, seed: int, steps: int | None
) -> list[list[int]]:
    """The batches of a whole run, as indices of `examples`; `steps` cuts it short."""
    lengths = [len(one.ids) for one in examples]
    groups = [one.sample.media.value for one in examples]
    plan: list[list[int]] = []
    for epoch in range(math.ceil(stage.epochs)):
        plan += batches(lengths, groups, batch_size=stage.batch_size, seed=seed, epoch=epoch)
    whole = round(len(plan) * stage.epochs / math.ceil(stage.epochs))
    return plan[: min(whole, steps or whole)]


class BrokenReport:
    """Note [Broken samples]. found: those that a step came upon, by their index among the examples."""

    def __init__(self, file: Path, dataset: Dataset, *, limit: float, writes: bool) -> None:
        """`limit`: the fraction of all samples that may be broken. `writes`: this process writes the file.

        Raises:
            UsageError: the files alone have more.
        """
        self.found: dict[int, Broken] = {}
        self._file, self._limit, self._writes = file, limit, writes
        self._read = dataset.broken
        self._total = len(dataset.examples) + len(dataset.broken)
        self.add({})

    def add(self, found: Mapping[int, Broken]) -> None:
        """Raises `UsageError` when there are more than the limit."""
        self.found.update(found)
        broken = [*self._read, *self.found.values()]
        if self._writes:
            with writing(self._file):
                self._file.write_text(json.dumps([asdict(one) for one in broken], indent=1), encoding="utf-8")
        if len(broken) > self._limit * self._total:
            raise UsageError(
                f"{len(broken)} of {self._total} samples are broken, such as {broken[-1].name!r}: "
                f"{broken[-1].reason.rstrip('.')}",
                expected=f"at most {self._limit:.0%}",
                next_step=f"All are listed in {self._file}.",
            )

    def to_json(self) -> list[list[object]]:
        """`found`, as `restore` takes it."""
        return [[index, one.name, one.reason] for index, one in self.found.items()]

    def restore(self, noted: Sequence[Sequence[object]]) -> None:
        """Takes over what the run had found before it was interrupted. Raises as `add`."""
        self.add({int(str(i)): Broken(str(name), str(reason)) for i, name, reason in noted})
