"""The software GPU, over which the other tests run, has no name that the vendors' have not.

That the executor's own names exist in every version is held by `tests/export/test_tensorrt_names.py`.
"""

from __future__ import annotations

import importlib.util
import inspect

import pytest

from tests.standin import cuda as cuda_standin
from tests.standin import tensorrt as tensorrt_standin
from tests.tensorrt_names import VERSIONS, names_of


@pytest.mark.parametrize("version", VERSIONS)
def test_the_software_gpu_has_no_name_that_tensorrt_has_not(version: str) -> None:
    for stands_in, kind in (
        (tensorrt_standin.Runtime, "Runtime"),
        (tensorrt_standin.Builder, "Builder"),
        (tensorrt_standin.BuilderConfig, "IBuilderConfig"),
        (tensorrt_standin.OnnxParser, "OnnxParser"),
        (tensorrt_standin.IProfiler, "IProfiler"),
        (tensorrt_standin.BuilderFlag, "BuilderFlag"),
        (tensorrt_standin.NetworkDefinitionCreationFlag, "NetworkDefinitionCreationFlag"),
        (tensorrt_standin.Engine, "ICudaEngine"),
        (tensorrt_standin.Context, "IExecutionContext"),
        (tensorrt_standin.ILogger, "ILogger"),
        (tensorrt_standin.DataType, "DataType"),
        (tensorrt_standin.TensorIOMode, "TensorIOMode"),
        (tensorrt_standin.TensorLocation, "TensorLocation"),
        (tensorrt_standin.ExecutionContextAllocationStrategy, "ExecutionContextAllocationStrategy"),
    ):
        own = {name for name, _ in inspect.getmembers(stands_in) if not name.startswith("_")}
        own -= set(dir(int))  # of an IntEnum
        assert own - {"from_bytes"} <= names_of(kind, version) | {"name", "value"}, kind


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
