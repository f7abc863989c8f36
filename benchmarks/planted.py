"""The same model with outlier channels, as large encoders and language models have them.

    planted = with_outliers(open_checkpoint(folder), factor=40, channels=3)

Some channels of each input that a migration may divide are made `factor` times larger, and the weights that
read them smaller: the inverse of a migration, so that the model computes what it did. A trained tiny model
has no such channels of its own; with them it answers the same questions, and a scheme that cannot cope with
them shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llamavid.calibrated import GraphCalibration
from llamavid.calibration.inputs import graph_inputs
from llamavid.model.checkpoint import Checkpoint, Stored
from llamavid.scales import GraphScales, Migration

PREFIX = {"vision": "vision.", "content": "compressor.", "context": "", "llm": "language."}


@dataclass(frozen=True, eq=False)
class Kept:
    """Tensors in memory, read as a file's are."""

    tensors: dict[str, Tensor]

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def glimpse(self, name: str, count: int) -> Tensor:
        return self.tensors[name].flatten()[:count]


def with_outliers(checkpoint: Checkpoint, *, factor: float, channels: int) -> Checkpoint:
    """The checkpoint, changed in memory. Every input gets channels of its own."""
    kept = Kept({})
    for graph, prefix in PREFIX.items():
        planted = _planted(checkpoint, graph, factor, channels)
        for migration in planted.scales.migrations:
            names = [one.name for one in migration.divided]
            names += [f"{module}.weight" for module in migration.multiplied]
            for name in names:
                full = prefix + name
                if full not in kept.tensors:
                    changed = planted.migrated(name, checkpoint.read(full).numpy())
                    kept.tensors[full] = torch.from_numpy(changed.copy())
    changed = {name: Stored(kept, name) for name in kept.tensors}  # type: ignore[arg-type]
    return replace(checkpoint, tensors={**checkpoint.tensors, **changed})


def _planted(checkpoint: Checkpoint, graph: str, factor: float, channels: int) -> GraphCalibration:
    """Migrations the wrong way: the vector is below 1 where the outliers will be."""
    random, migrations, vectors = np.random.default_rng(0), [], {}
    prefix = PREFIX[graph]
    for found in graph_inputs(checkpoint.config, graph):
        if found.divided:
            width = checkpoint.tensors[f"{prefix}{found.name}.weight"].shape[-1]
            vectors[found.name] = _vector(random, width, factor, channels)
            migrations.append(Migration(found.name, found.divided, found.readers))
    return GraphCalibration(GraphScales("int4", migrations=tuple(migrations), block=32), vectors)


def _vector(random: np.random.Generator, width: int, factor: float, channels: int) -> npt.NDArray[np.float32]:
    vector = np.ones(width, np.float32)
    vector[random.choice(width, channels, replace=False)] = 1 / factor
    return vector
