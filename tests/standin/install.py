"""Puts the software GPU in the vendors' places for one test."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamavid.engines import Device
from llamavid.runtime.tensorrt.device import this_device
from llamavid.targets import Library
from tests.standin import cuda, tensorrt


@dataclass
class Machine:
    """What a test sees of it."""

    gpu: cuda.Gpu
    counts: tensorrt.Counts

    @property
    def device(self) -> Device:
        return this_device(Library.TENSORRT)

    def leaks(self) -> dict[str, int]:
        """After everything was closed."""
        gc.collect()
        engines = {"engines": len(self.counts.alive)} if len(self.counts.alive) else {}
        return {**self.gpu.leaks, **engines}


def install(
    monkeypatch: pytest.MonkeyPatch, gpu: cuda.Gpu | None = None, *, version: str = "11.4.0.12"
) -> Machine:
    machine = Machine(gpu or cuda.Gpu(), tensorrt.Counts())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda.module(machine.gpu))
    monkeypatch.setitem(
        sys.modules, "tensorrt", tensorrt.module(machine.gpu, machine.counts, version=version)
    )
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("llamavid.runtime.tensorrt.device._DRIVER", Path("/nowhere"))
    return machine
