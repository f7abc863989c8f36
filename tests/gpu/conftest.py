"""What a GPU test needs, each thing skipped by its name where it is missing.

    make test-gpu PYTHON=python3.12            with any Python that has pytest and numpy
    LLAMAVID_REQUIRE_GPU=1 make test-gpu       a missing GPU is a failure, not a skip

Nothing of the repository need be installed: the root is on the path. `--confcutdir` keeps the other tests'
fixtures out, which import what such a machine has not.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

REQUIRE = "LLAMAVID_REQUIRE_GPU"


def needed(*names: str) -> list[Any]:
    """The modules of these names; the test is skipped for the first one that is missing."""
    found = []
    for name in names:
        try:
            found.append(import_module(name))
        except ImportError:
            pytest.skip(f"{name} is not installed")
    return found


def missing_gpu(why: str) -> None:
    if os.environ.get(REQUIRE):
        pytest.fail(f"{why}, and {REQUIRE} is set")
    pytest.skip(why)


@pytest.fixture
def torch() -> Any:
    """PyTorch with a GPU."""
    (module,) = needed("torch")
    if not module.cuda.is_available():
        missing_gpu(f"torch {module.__version__} sees no GPU")
    return module


@pytest.fixture
def cuda() -> Any:
    """Our CUDA calls, on a GPU."""
    return our_cuda()


def our_cuda() -> Any:
    """For fixtures that live longer than a test."""
    from llamavid.errors import DeviceError
    from llamavid.runtime.tensorrt.cuda import Cuda
    from llamavid.runtime.tensorrt.device import require_gpu

    try:
        made = Cuda()
    except DeviceError as error:
        pytest.skip(error.given)
    try:
        require_gpu(made)
    except DeviceError as error:
        missing_gpu(error.given)
    return made
