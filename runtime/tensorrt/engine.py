"""One engine: deserialized, checked against what engines.json says of it, and ready to run by profile.

Whoever opens one has passed `open_engines`, `require_device` and, to answer, `require_stamp` before: an
engine is executable content. Takes and gives addresses; knows nothing of who owns the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llamavid.contract import GraphContract, TensorSpec
from llamavid.engines import EngineEntry, EngineSet, Profile, command, read_engine
from llamavid.errors import BundleError, DeviceError
from llamavid.runtime.tensorrt.buffers import ALIGNMENT
from llamavid.runtime.tensorrt.cuda import Cuda, Stream
from llamavid.runtime.tensorrt.library import TensorRt

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """An engine that this very process has built, for its own use: no set has to vouch for it."""

    plan: Any  # bytes-like
    contract: GraphContract


class Engine:
    """One stage's engine. One thread at a time."""

    def __init__(
        self, cuda: Cuda, tensorrt: TensorRt, engines: EngineSet, stage: str, built: Built | None = None
    ) -> None:
        """Deserializes it.

        Args:
            built: what takes the place of the set's own engine of that stage.

        Raises:
            BundleError: the set has no such stage, the engine has changed, or is not what engines.json says.
            DeviceError: TensorRT does not take it.
        """
        again = f"Run: {command('build', engines.bundle_folder, engines.manifest.target)}."
        plan = read_engine(engines, stage) if built is None else built.plan
        self.stage, self._cuda, self._tensorrt = stage, cuda, tensorrt
        self.entry: EngineEntry = engines.manifest.engines[stage]
        if built is not None:
            self.entry = replace(self.entry, contract=built.contract)
        self._runtime = tensorrt.api.Runtime(tensorrt.log)
        if engines.manifest.version_compatible:  # such an engine brings the code that runs it
            self._runtime.engine_host_code_allowed = True
        file = engines.path(stage)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeviceError(
                f"{tensorrt.library.product} {tensorrt.version} does not take {file} ({tensorrt.words()})",
                next_step=again,
            )
        for problem in _differences(tensorrt, self._engine, self.entry):
            raise BundleError(f"{file} {problem}", next_step=again)

    @property
    def contract(self) -> GraphContract:
        return self.entry.contract

    @property
    def profiles(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(profile.name for profile in self.entry.profiles)

    def profile(self, name: str) -> Profile:
        """Raises `BundleError` where the engine was built without it."""
        for profile in self.entry.profiles:
            if profile.name == name:
                return profile
        names = ", ".join(self.profiles)
        raise BundleError(f"engine {self.stage} has no profile {name!r}; it has: {names}")

    def context(self, profile: str) -> Context:
        """What runs it with the shapes of that profile. Each has working memory of its own on the GPU.

        Raises:
            DeviceError: there is not enough of that memory.
        """
        chosen = self.profile(profile)
        # Not what the largest profile needs: a decode step's context takes little, and each cache has one.
        strategy = self._tensorrt.api.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        made = self._engine.create_execution_context(strategy)
        index = self.entry.profiles.index(chosen)
        with Stream(self._cuda) as stream:  # memory is taken here, so here too it may be too little
            if made is None or not made.set_optimization_profile_async(index, int(stream.handle)):
                free = self._cuda.free_bytes() / 2**20
                raise DeviceError(
                    f"engine {self.stage} gets no working memory for profile {profile} "
                    f"({self._tensorrt.words()}); {free:,.1f} MiB of the GPU are free",
                    next_step="Free some of the GPU's memory, or pass --on cpu.",
                )
            stream.synchronize()
        return Context(self._tensorrt, self.stage, self.contract, chosen, made)

    def close(self) -> None:
        """Frees the weights. Its contexts must be gone, and their work done."""
        self._engine = self._runtime = None


class Context:
    """One engine with one profile: shapes and addresses are set, then it is put on a stream."""

    def __init__(
        self, tensorrt: TensorRt, stage: str, contract: GraphContract, profile: Profile, context: Any
    ) -> None:
        self._tensorrt, self._context = tensorrt, context
        self.stage, self.contract, self.profile = stage, contract, profile
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Of inputs. Raises `DeviceError` for one that the profile does not hold."""
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            self._check_in_profile(self.contract.spec(name), shape)
            if not self._context.set_input_shape(name, shape):
                raise DeviceError(
                    f"engine {self.stage} refuses {name} as {list(shape)} ({self._tensorrt.words()})"
                )
            self._shapes[name] = shape

    def shape(self, name: str) -> Shape:
        """Of an output too, once the shapes of all inputs are set."""
        return tuple(self._context.get_tensor_shape(name))

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Where inputs are read and outputs written, of any run to come. Raises `DeviceError`."""
        for name, address in addresses.items():
            if self._addresses.get(name) == address:
                continue
            assert address % ALIGNMENT == 0, f"{name} of {self.stage} begins at {address:#x}"
            if not self._context.set_tensor_address(name, address):
                raise DeviceError(
                    f"engine {self.stage} refuses {name} at {address:#x} ({self._tensorrt.words()})"
                )
            self._addresses[name] = address

    def enqueue(self, stream: Stream) -> None:
        """One run, after what the stream holds. Raises `DeviceError`."""
        if not self._context.execute_async_v3(int(stream.handle)):
            raise DeviceError(
                f"engine {self.stage} does not run ({self._tensorrt.words()})",
                next_step="Look at the GPU with nvidia-smi, or pass --on cpu.",
            )

    def can_be_captured(self, stream: Stream) -> bool:
        """Whether a run may become part of a graph. TensorRT's can; TensorRT-RTX says."""
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(int(stream.handle)))

    def report_layers(self, profiler: Any) -> None:
        """From now on every run waits for its end, and tells `profiler`, an IProfiler, its layers' times."""
        self._profiler = profiler  # TensorRT does not keep it
        self._context.profiler = profiler

    def close(self) -> None:
        """Frees its working memory; its work must be done."""
        self._context = None

    def _check_in_profile(self, spec: TensorSpec, shape: Shape) -> None:
        smallest, largest = bounds(self.profile, spec)
        inside = len(shape) == len(smallest) and all(
            low <= given <= high for low, given, high in zip(smallest, shape, largest, strict=True)
        )
        if not inside:
            raise DeviceError(
                f"{spec.name} of engine {self.stage} is {list(shape)}",
                expected=f"{list(smallest)} to {list(largest)}, its profile {self.profile.name}",
                next_step="Build the engines again with a wider profile, or pass --on cpu.",
            )


def bounds(profile: Profile, spec: TensorSpec) -> tuple[Shape, Shape]:
    """The smallest and the largest shape of an input. One that is not in the profile has a fixed shape."""
    fixed = tuple(dim if isinstance(dim, int) else 0 for dim in spec.shape)
    smallest, largest = (
        tuple(shapes.get(spec.name, fixed)) for shapes in (profile.smallest, profile.largest)
    )
    return smallest, largest


def size_of(spec: TensorSpec, shape: Shape) -> int:
    """Bytes."""
    return math.prod(shape) * spec.dtype.numpy.itemsize


def _differences(tensorrt: TensorRt, engine: Any, entry: EngineEntry) -> list[str]:
    """What an engine has otherwise than engines.json says, as ends of a sentence."""
    api = tensorrt.api
    names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
    given = {kind: {n for n in names if engine.get_tensor_mode(n) == kind} for kind in _modes(api)}
    found = []
    for kind, specs in zip(_modes(api), (entry.contract.inputs, entry.contract.outputs), strict=True):
        wanted = {spec.name for spec in specs}
        if given[kind] != wanted:
            more, fewer = _named(given[kind] - wanted), _named(wanted - given[kind])
            found.append(f"has {kind.name.lower()}s that are not listed: {more}; and lacks: {fewer}")
            continue
        found += [problem for spec in specs for problem in _tensor_differences(tensorrt, engine, spec)]
    if engine.num_optimization_profiles != len(entry.profiles):
        found.append(f"has {engine.num_optimization_profiles} profiles, not {len(entry.profiles)}")
    return found


def _tensor_differences(tensorrt: TensorRt, engine: Any, spec: TensorSpec) -> list[str]:
    dtype, shape = engine.get_tensor_dtype(spec.name), tuple(engine.get_tensor_shape(spec.name))
    if dtype != tensorrt.data_type(spec.dtype):
        return [f"has {spec.name} in {dtype.name}, not {spec.dtype.value}"]
    fits = len(shape) == len(spec.shape) and all(
        dim in (-1, wanted) or isinstance(wanted, str) for dim, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        return [f"has {spec.name} as {list(shape)}, not {list(spec.shape)}"]
    if engine.get_tensor_location(spec.name) != tensorrt.api.TensorLocation.DEVICE:
        return [f"wants {spec.name} on the host"]
    return []


def _modes(api: Any) -> tuple[Any, Any]:
    return api.TensorIOMode.INPUT, api.TensorIOMode.OUTPUT


def _named(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "") or "none"
