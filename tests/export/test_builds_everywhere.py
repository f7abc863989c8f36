"""All graphs of the tiny model build with TensorRT-RTX in every precision for every device that has it; of
the real dimensions, cut to two blocks and layers, those in the precisions that are used most.

One call builds for all devices: TensorRT-RTX compiles for each, and fails where one of them cannot. All
precisions at real dimensions take three minutes of a core: `make builds`, docs/what-builds.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.every_graph import GRAPHS, MODELS, PRECISIONS, WrittenGraph, every_graph
from llamavid.errors import DeviceError
from llamavid.export.compilation import Settings, compiled
from llamavid.export.tensorrt_library import TensorRt
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.targets import Capability, precisions_of
from tests.export.rtx import tensorrt_rtx

AT_REAL_DIMENSIONS = ("fp16", "int8", "int4")
CASES = [*(("tiny", name) for name in PRECISIONS), *(("real", name) for name in AT_REAL_DIMENSIONS)]
CAPABILITIES: tuple[Capability, ...] = ((8, 0), (8, 6), (8, 9), (12, 0))


@pytest.fixture(scope="session")
def trt() -> TensorRt:
    return tensorrt_rtx()


@pytest.fixture(scope="session")
def checkpoint(
    request: pytest.FixtureRequest, trt: TensorRt, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    folder = tmp_path_factory.getbasetemp() / f"model-{request.param}"
    if not folder.exists():
        write_random_checkpoint(folder, MODELS[request.param], seed=7)
    return open_checkpoint(folder / "checkpoint")


@pytest.fixture
def written(checkpoint: Checkpoint, tmp_path: Path, precision: str) -> Iterator[Iterator[WrittenGraph]]:
    """The graphs, which are gigabytes: gone when they are built."""
    yield every_graph(checkpoint, tmp_path, precision)
    for file in tmp_path.iterdir():
        file.unlink()


def having(precision: str) -> tuple[Capability, ...]:
    return tuple(capability for capability in CAPABILITIES if precision in precisions_of(capability))


@pytest.mark.parametrize(("checkpoint", "precision"), CASES, indirect=["checkpoint"])
def test_every_graph_builds_for_every_device_that_has_the_precision(
    trt: TensorRt, written: Iterator[WrittenGraph], precision: str
) -> None:
    sizes = {}
    for graph in written:
        settings = Settings(capabilities=having(precision))
        engine = compiled(
            trt, graph.graph, graph.file, graph.contract, graph.profiles, settings, fixed=graph.fixed
        )
        sizes[graph.graph] = engine.data.nbytes
    assert tuple(sizes) == GRAPHS
    assert min(sizes.values()) > 50_000


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("checkpoint", ["tiny"], indirect=True)
def test_a_device_without_the_precision_is_refused_by_name(
    trt: TensorRt, written: Iterator[WrittenGraph], precision: str
) -> None:
    graph = next(written)
    settings = Settings(capabilities=((7, 5),))
    with pytest.raises(
        DeviceError, match=r"graph vision computes in (fp8|bfloat16).*, which SM75 does not have"
    ):
        compiled(trt, graph.graph, graph.file, graph.contract, graph.profiles, settings)
