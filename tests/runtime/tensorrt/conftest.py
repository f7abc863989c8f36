"""The embedded bundle with engines on the software GPU, and what the CPU says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llamavid.embedded import default_bundle, sample_clip
from llamavid.runtime.session import Answer, VideoSession
from tests.standin.cuda import Gpu, Order
from tests.standin.engines import stamp, write_engines
from tests.standin.install import Machine, install

QUESTION = "What happens in the video?"


@pytest.fixture(params=Order, ids=lambda order: order.value)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """In both orders in which a GPU may do its work."""
    return install(monkeypatch, Gpu(order=request.param))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """In one of them."""
    return install(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the embedded bundle, to put engines into."""
    return shutil.copytree(default_bundle(), tmp_path / "bundle")


@pytest.fixture
def stamped(bundle: Path) -> Callable[..., Path]:
    """The bundle with engines that may answer on the machine; arguments as `write_engines`."""

    def make(machine: Machine, **settings: object) -> Path:
        write_engines(bundle, **settings)  # type: ignore[arg-type]
        stamp(bundle, machine.device)
        return bundle

    return make


@pytest.fixture(scope="session")
def on_cpu() -> Answer:
    """What the embedded bundle says about its clip."""
    with VideoSession.open(default_bundle(), threads=1, on="cpu") as session:
        session.watch(sample_clip(), fps=2)
        return session.ask(QUESTION, max_new_tokens=24, evidence=True)
