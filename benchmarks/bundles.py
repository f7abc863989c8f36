"""Bundles of random weights to measure with, made in a folder that goes away."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import SIZES


def random_bundle(folder: Path, *options: str, **size: Any) -> Path:
    """A bundle of Vicuna-7B's and EVA-g's dimensions but for `size`; `options` go to `llamavid export`."""
    release, bundle = folder / "release", folder / "bundle"
    write_random_checkpoint(release, dataclasses.replace(SIZES["7b"], **size), seed=0, dtype=torch.float16)
    command = ["export", str(release / "checkpoint"), "-o", str(bundle), *options]
    subprocess.run([sys.executable, "-m", "llamavid", *command], check=True, stdout=subprocess.DEVNULL)
    return bundle
