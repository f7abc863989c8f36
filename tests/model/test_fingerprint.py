"""A checkpoint is known by its numbers: those of the language model too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.fingerprint import fingerprint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "release"
    write_random_checkpoint(folder, TINY, seed=5)
    return folder


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "model.mm_projector.0.bias"])
def test_another_number_is_another_checkpoint(release: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(release, tmp_path / "other")
    changed = 0
    for file in (tmp_path / "other" / "checkpoint").glob("*.bin"):
        weights = torch.load(file, weights_only=True)
        if name in weights:
            weights[name].view(-1)[-1] += 1
            torch.save(weights, file)
            changed += 1
    assert changed == 1
    one, other = (open_checkpoint(folder / "checkpoint") for folder in (release, tmp_path / "other"))
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(open_checkpoint(release / "checkpoint"))
