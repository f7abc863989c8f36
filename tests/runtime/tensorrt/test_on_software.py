"""The tests for a real GPU, over the software one: when there is a GPU, they are known to be right."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from llamavid.bundle import open_bundle
from llamavid.embedded import default_bundle
from llamavid.engines import open_engines
from llamavid.runtime.tensorrt.cuda import Cuda
from tests.gpu.test_cuda import *  # noqa: F403
from tests.gpu.test_engines import (  # noqa: F401
    test_128_decoded_tokens_follow_onnx_runtime,
    test_a_session_encodes_64_frames_and_answers_and_gives_the_memory_back,
    test_each_frame_engine_computes_what_its_graph_does,
)
from tests.standin.cuda import Gpu
from tests.standin.engines import write_engines
from tests.standin.install import Machine, install

pytestmark: list[Any] = []  # not `gpu`, which came with them


@pytest.fixture(scope="module")
def software() -> Iterator[Machine]:
    with pytest.MonkeyPatch.context() as patch:
        yield install(patch, Gpu(total_bytes=4 << 30))


@pytest.fixture
def cuda(software: Machine) -> Cuda:
    return Cuda()


@pytest.fixture(scope="module")
def built(software: Machine, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(default_bundle(), folder)
    write_engines(folder, frames=8)
    bundle = open_bundle(folder)
    return bundle, open_engines(bundle, "a100"), software.device
