"""`tensorrt` of a software GPU: an engine is JSON that names an ONNX file, which ONNX Runtime runs.

Strict where the manuals are: addresses are aligned, shapes are inside the profile, the first run after a new
shape is not captured, and a graph is launched only while its context is as it was captured.
"""

from __future__ import annotations

import enum
import json
import tempfile
import time
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tests.standin.cuda import Gpu, Stream
from tests.standin.memory import ALIGNMENT, IllegalAccessError


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT32 = "int32"
    INT64 = "int64"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1


class IProfiler:
    """Told of each layer after a run."""


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    TF32 = 5


class Counts:
    """What was made of engines, for tests to ask."""

    def __init__(self) -> None:
        self.deserialized = 0
        self.runs: dict[str, int] = {}  # by ONNX file's name
        self.largest: dict[str, dict[str, tuple[int, ...]]] = {}
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.layers: list[str] | None = None  # what the context engine's are called; None: as its nodes


def module(gpu: Gpu, counts: Counts, *, version: str = "11.4.0.12") -> types.ModuleType:
    """What takes the place of `tensorrt`."""
    made: Any = types.ModuleType("tensorrt")
    made.__version__ = version
    for kind in (
        *(ILogger, IProfiler, DataType, TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy),
        *(NetworkDefinitionCreationFlag, BuilderFlag),
    ):
        setattr(made, kind.__name__, kind)
    made.Builder = lambda logger: Builder(gpu)
    made.OnnxParser = lambda network, logger: OnnxParser(network)
    made.Runtime = lambda logger: Runtime(gpu, counts, logger)
    return made


class OnnxParser:
    def __init__(self, network: list[bytes]) -> None:
        self._network = network

    def parse(self, model: bytes) -> bool:
        onnx.checker.check_model(onnx.load_from_string(model))
        self._network.append(model)
        return True


class BuilderConfig:
    def clear_flag(self, flag: BuilderFlag) -> None:
        """Float32 is that here in any case."""


class Builder:
    """Of networks without profiles; an engine keeps its ONNX file in a folder of its own."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def create_network(self, flags: int) -> list[bytes]:
        return []

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def build_serialized_network(self, network: list[bytes], config: BuilderConfig) -> bytes | None:
        (model,) = network
        graph = onnx.load_from_string(model).graph
        is_fp8 = any(each.data_type == onnx.TensorProto.FLOAT8E4M3FN for each in graph.initializer)
        if is_fp8 and self._gpu.capability < (8, 9):
            return None
        folder = tempfile.TemporaryDirectory(prefix="built.")
        self._gpu.kept.append(folder)  # gone with the GPU
        file = Path(folder.name, "network.onnx")
        file.write_bytes(model)
        tensors = [
            {
                "name": value.name,
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [dim.dim_value for dim in value.type.tensor_type.shape.dim],
                "mode": mode,
            }
            for mode, values in (("INPUT", graph.input), ("OUTPUT", graph.output))
            for value in values
        ]
        return json.dumps({"onnx": str(file), "tensors": tensors, "profiles": [{}]}).encode()


class Runtime:
    def __init__(self, gpu: Gpu, counts: Counts, logger: Any) -> None:
        self._gpu, self._counts, self._logger = gpu, counts, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        self._counts.deserialized += 1
        try:
            data = json.loads(plan)
        except ValueError:
            self._logger.log(ILogger.ERROR, "Error Code 1: Serialization (magic tag does not match)")
            return None
        return Engine(self._gpu, self._counts, self._logger, data)


class Engine:
    """ICudaEngine."""

    def __init__(self, gpu: Gpu, counts: Counts, logger: Any, data: dict[str, Any]) -> None:
        self.gpu, self.counts, self.logger, self.data = gpu, counts, logger, data
        self.tensors = {tensor["name"]: tensor for tensor in data["tensors"]}
        self.names = list(self.tensors)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(data["onnx"], options, providers=["CPUExecutionProvider"])
        self._found: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}
        counts.alive.add(self)

    @property
    def _inputs(self) -> set[str]:
        return {name for name, tensor in self.tensors.items() if tensor["mode"] == "INPUT"}

    def _shape_of(self, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Of an output whose dimensions are no input's: what a run with any numbers has."""
        key = tuple(sorted(shapes.items()))
        if key not in self._found:
            given = {each: np.ones(shape, self.tensors[each]["dtype"]) for each, shape in shapes.items()}
            if "total_length" in given:  # no less than what is read
                given["total_length"][:] = shapes["inputs_embeds"][1]
            names = [output.name for output in self.session.get_outputs()]
            results = self.session.run(names, given)
            self._found[key] = {each: array.shape for each, array in zip(names, results, strict=True)}
        return self._found[key][name]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.data["profiles"])

    def get_tensor_name(self, at: int) -> str:
        return self.names[at]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self.tensors[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.tensors[name]["dtype"])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.tensors[name]["shape"])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> Context:
        return Context(self)


class Context:
    """IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._gpu = engine, engine.gpu
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._state = 0  # changes with every setting
        self._prepared: dict[str, tuple[int, ...]] = {}  # shapes of the last run
        self.profiler: Any = None
        engine.counts.alive.add(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile, self._state = index, self._state + 1
        if self._gpu.fails("set_optimization_profile_async"):  # it takes the profile's memory
            return self._refused("out of memory")
        return index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.data["profiles"][self._profile][name]
        if not all(a <= dim <= b for a, dim, b in zip(low, shape, high, strict=True)):
            return self._refused(f"{name} {shape} is not in [{low}, {high}]")
        self._shapes[name], self._state = tuple(shape), self._state + 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        named = {
            dim: size
            for given, shape in self._shapes.items()
            for dim, size in zip(self._engine.tensors[given]["shape"], shape, strict=True)
            if isinstance(dim, str)
        }
        tensor = self._engine.tensors[name]
        shape = tuple(dim if isinstance(dim, int) else named.get(dim, -1) for dim in tensor["shape"])
        if -1 in shape and tensor["mode"] == "OUTPUT" and self._shapes.keys() == self._engine._inputs:
            return self._engine._shape_of(name, self._shapes)
        return shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % ALIGNMENT or self._gpu.fails("set_tensor_address"):
            return self._refused(f"{name} at {address:#x}")
        self._addresses[name], self._state = address, self._state + 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream: Stream = self._gpu.streams[stream_handle]
        shapes = {name: self.get_tensor_shape(name) for name in self._engine.names}
        for name, shape in shapes.items():
            if -1 in shape:
                return self._refused(f"{name} has no shape")
            if self._addresses.get(name, 1) % ALIGNMENT:
                return self._refused(f"{name} has no address, or one that is not aligned")
            updated = name.replace("present.", "past.")
            if self._addresses.get(name) != self._addresses.get(updated):
                return self._refused(f"{name} is {updated}, updated in place, and has another address")
        if stream.captured is not None and self._prepared != shapes:
            stream.capture_is_broken = True
            return self._refused("the first run with a shape cannot be captured")
        self._prepared = shapes
        run = _Run(self, shapes, dict(self._addresses), None if stream.captured is None else self._state)
        self._gpu.put(stream, run)
        if self.profiler is not None:  # such a run is waited for
            start = time.perf_counter()
            self._gpu.run(stream, stream.put)
            self._report((time.perf_counter() - start) * 1000)
        return True

    def _report(self, milliseconds: float) -> None:
        """Every layer took the same."""
        engine = self._engine
        layers = engine.counts.layers or [node.name for node in onnx.load(engine.data["onnx"]).graph.node]
        for layer in layers:
            self.profiler.report_layer_time(layer, milliseconds / len(layers))

    def _refused(self, why: str) -> bool:
        self._engine.logger.log(ILogger.ERROR, f"Error Code 3: API Usage Error ({why})")
        return False


class _Run:
    """One execution: shapes and addresses as they were when it was put in."""

    def __init__(
        self,
        context: Context,
        shapes: dict[str, tuple[int, ...]],
        addresses: dict[str, int],
        state: int | None,
    ) -> None:
        self._context, self._engine = weakref.ref(context), weakref.ref(context._engine)
        self._shapes, self._addresses, self._state = shapes, addresses, state

    def __call__(self) -> None:
        context, engine = self._context(), self._engine()
        if context is None or engine is None:
            raise IllegalAccessError("an engine or its context was freed before its work was done")
        if self._state not in (None, context._state):
            raise IllegalAccessError("a graph was launched whose context has changed since")
        arrays = {name: self._view(engine, name) for name in engine.names}
        _compute(engine, arrays)
        name = engine.data["onnx"].rsplit("/", 1)[-1]
        engine.counts.runs[name] = engine.counts.runs.get(name, 0) + 1

    def _view(self, engine: Engine, name: str) -> np.ndarray:
        dtype, shape = np.dtype(engine.tensors[name]["dtype"]), self._shapes[name]
        size = int(np.prod(shape)) * dtype.itemsize
        return engine.gpu.memory.bytes(self._addresses[name], size).view(dtype).reshape(shape)


def _compute(engine: Engine, arrays: dict[str, np.ndarray]) -> None:
    """Outputs are written where they lie; what is updated in place is written over."""
    session = engine.session
    inputs = {node.name: np.ascontiguousarray(arrays[node.name]) for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]
    for name, result in zip(names, session.run(names, inputs), strict=True):
        arrays[name][...] = result
