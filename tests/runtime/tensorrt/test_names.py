"""Every vendor's name that running engines uses exists in each version that is claimed.

What the executor calls is read out of its source. The software GPU, over which the other tests run, has no
name that the vendors' have not.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from pathlib import Path

import pytest

from tests.standin import cuda as cuda_standin
from tests.standin import tensorrt as tensorrt_standin

ROOT = Path(__file__).parent.parent.parent.parent
FOLDER = ROOT / "runtime" / "tensorrt"
RECORDED = json.loads((Path(__file__).parent / "recorded_names.json").read_text())
VERSIONS = list(RECORDED)
ONLY_WHERE_ASKED = {"is_stream_capturable"}  # looked for with getattr
CLASSES = (
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "DataType",
    "TensorIOMode",
    "TensorLocation",
    "ExecutionContextAllocationStrategy",
)


def attributes_used() -> set[str]:
    """What follows a dot anywhere in the executor, and is a name of TensorRT's in some version."""
    known = {name for version in RECORDED.values() for names in version.values() for name in names}
    found = {
        node.attr
        for file in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    }
    return found & known


def test_the_names_that_matter_are_found() -> None:
    """So that the test below has something to say."""
    assert {"deserialize_cuda_engine", "execute_async_v3", "set_tensor_address"} <= attributes_used()


@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_has_what_is_called_in_every_version(version: str) -> None:
    names = {name for kind in CLASSES for name in RECORDED[version][kind]} | set(RECORDED[version]["__top__"])
    everywhere = {name for kinds in RECORDED.values() for each in kinds.values() for name in each}
    used = {name for name in attributes_used() if name in everywhere} - ONLY_WHERE_ASKED
    assert used - names == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_software_gpu_has_no_name_that_tensorrt_has_not(version: str) -> None:
    for stands_in, kind in (
        (tensorrt_standin.Runtime, "Runtime"),
        (tensorrt_standin.Engine, "ICudaEngine"),
        (tensorrt_standin.Context, "IExecutionContext"),
        (tensorrt_standin.ILogger, "ILogger"),
        (tensorrt_standin.DataType, "DataType"),
        (tensorrt_standin.TensorIOMode, "TensorIOMode"),
        (tensorrt_standin.TensorLocation, "TensorLocation"),
        (tensorrt_standin.ExecutionContextAllocationStrategy, "ExecutionContextAllocationStrategy"),
    ):
        own = {name for name, _ in inspect.getmembers(stands_in) if not name.startswith("_")}
        assert own - {"from_bytes"} <= set(RECORDED[version][kind]) | {"name", "value"}, kind


@pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None, reason="cuda-python is not installed: nothing to compare with"
)
def test_the_software_gpu_has_no_name_that_cuda_has_not() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    for function in cuda_standin.FUNCTIONS:
        assert hasattr(real, function.__name__)
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        for member in getattr(cuda_standin, kind):
            assert getattr(getattr(real, kind), member.name).value == member.value


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed"
)
def test_tensorrt_rtx_takes_the_logger_and_refuses_what_is_no_engine_in_words() -> None:
    """Of the real library, which loads without a GPU."""
    from llamavid.runtime.tensorrt.library import TensorRt
    from llamavid.targets import Library

    tensorrt = TensorRt(Library.TENSORRT_RTX)
    assert tensorrt.version
    try:
        runtime = tensorrt.api.Runtime(tensorrt.log)
    except (TypeError, RuntimeError):  # it wants a GPU for this
        return
    assert runtime.deserialize_cuda_engine(b"no engine at all") is None
    assert tensorrt.words() != "no reason given"
