# ruff: noqa: N801, N802, N815 - the vendor's names
"""`cuda.bindings.runtime` of a software GPU. Functions give (error, value ...), as cuda-python's do.

Two orders in which queued work runs. LATE: only what a synchronization asks for, when it asks. OTHERS_FIRST:
when one stream is waited for, all other streams run first as far as they may.
"""

from __future__ import annotations

import enum
import time
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.standin.memory import IllegalAccessError, Memory


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


OK = cudaError_t.cudaSuccess
WORDS = {cudaError_t.cudaErrorInvalidDevice: "invalid device ordinal"}  # where a test reads them
ILLEGAL, INVALID = cudaError_t.cudaErrorIllegalAddress, cudaError_t.cudaErrorInvalidValue


DISABLE_TIMING = 2


class Order(enum.Enum):
    LATE = "late"
    OTHERS_FIRST = "others first"


class Stream:
    """A queue. `int(stream)` is what TensorRT is given."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiting: deque[Callable[[], None]] = deque()
        self.put = self.done = 0
        self.captured: list[Callable[[], None]] | None = None
        self.capture_is_broken = False

    def __int__(self) -> int:
        return self.number


class Event:
    """Where in which stream it was recorded; and when that was reached, where it was made to tell."""

    def __init__(self, flags: int) -> None:
        self.at: tuple[Stream, int] | None = None
        self.tells_time = not flags & DISABLE_TIMING
        self.reached: float | None = None


class Properties:
    def __init__(self, name: bytes) -> None:
        self.name = name


class Gpu:
    """One device: memory, streams, and counts of what was done."""

    def __init__(
        self,
        *,
        total_bytes: int = 1 << 30,
        capability: tuple[int, int] = (8, 0),
        driver: int = 13000,
        devices: int = 1,
        order: Order = Order.LATE,
    ) -> None:
        self.memory = Memory(total_bytes)
        self.capability, self.driver, self.devices, self.order = capability, driver, devices, order
        self.name = b"Software A100"
        self.failed = self.last_error = OK  # a failure of queued work stays
        self.streams: dict[int, Stream] = {}
        self.events: set[Event] = set()
        self.graphs: set[Any] = set()
        self.calls: dict[str, int] = {}
        self.host_reads = self.host_writes = 0  # bytes copied between the memories
        self.kept: list[Any] = []  # what lives as long as the device
        self.fail_after: dict[str, int] = {}  # a call's name -> how many more succeed
        self._numbers = 1000

    @property
    def leaks(self) -> dict[str, int]:
        """What is still there; empty when all was given back."""
        left = {
            "blocks": self.memory.live,
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs),
        }
        return {name: count for name, count in left.items() if count}

    def fails(self, name: str) -> bool:
        """Whether this call of that name does, by `fail_after`."""
        if name not in self.fail_after:
            return False
        self.fail_after[name] -= 1
        return self.fail_after[name] < 0

    # Work.

    def put(self, stream: Stream, work: Callable[[], None]) -> None:
        if stream.captured is not None:
            stream.captured.append(work)
        else:
            stream.waiting.append(work)
            stream.put += 1

    def run(self, stream: Stream, until: int) -> None:
        if self.order is Order.OTHERS_FIRST:
            for other in list(self.streams.values()):
                if other is not stream:
                    self._run(other, other.put)
        self._run(stream, until)

    def _run(self, stream: Stream, until: int) -> None:
        while stream.done < until and stream.waiting:
            work = stream.waiting.popleft()
            stream.done += 1
            if self.failed is OK:
                try:
                    work()
                except IllegalAccessError as error:
                    self.failed, self.why = ILLEGAL, str(error)

    def copy(self, target: int, source: int, size: int) -> None:
        read = self.memory.bytes(source, size)
        self.memory.bytes(target, size)[:] = read
        self.host_writes += size if self.memory.is_host(target) else 0
        self.host_reads += size if self.memory.is_host(source) else 0


def module(gpu: Gpu) -> types.ModuleType:
    """What takes the place of `cuda.bindings.runtime`."""
    made = types.ModuleType("cuda.bindings.runtime")
    for kind in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr):
        setattr(made, kind.__name__, kind)
    constants = {"cudaEventDefault": 0, "cudaEventDisableTiming": DISABLE_TIMING, "cudaStreamNonBlocking": 1}
    vars(made).update(constants)
    for function in FUNCTIONS:
        setattr(made, function.__name__, _counted(gpu, function))
    return made


def _counted(gpu: Gpu, function: Callable[..., Any]) -> Callable[..., Any]:
    name = function.__name__

    def call(*arguments: Any) -> Any:
        gpu.calls[name] = gpu.calls.get(name, 0) + 1
        if gpu.fails(name):
            return cudaError_t.cudaErrorMemoryAllocation, None
        result = function(gpu, *arguments)
        if result[0] is not OK and name != "cudaGetLastError":
            gpu.last_error = result[0]
        return result

    return call


# The functions, by the vendor's names.


def cudaGetErrorString(gpu: Gpu, code: cudaError_t) -> tuple[cudaError_t, bytes]:
    return OK, WORDS.get(code, code.name).encode()


def cudaGetLastError(gpu: Gpu) -> tuple[cudaError_t]:
    last, gpu.last_error = gpu.last_error, gpu.failed
    return (last,)


def cudaGetDeviceCount(gpu: Gpu) -> tuple[cudaError_t, int | None]:
    if gpu.driver < cudaRuntimeGetVersion(gpu)[1]:
        return cudaError_t.cudaErrorInsufficientDriver, None
    return (OK, gpu.devices) if gpu.devices else (cudaError_t.cudaErrorNoDevice, None)


def cudaSetDevice(gpu: Gpu, device: int) -> tuple[cudaError_t]:
    return (OK if device < gpu.devices else cudaError_t.cudaErrorInvalidDevice,)


def cudaDriverGetVersion(gpu: Gpu) -> tuple[cudaError_t, int]:
    return OK, gpu.driver


def cudaRuntimeGetVersion(gpu: Gpu) -> tuple[cudaError_t, int]:
    return OK, 13000


def cudaGetDeviceProperties(gpu: Gpu, device: int) -> tuple[cudaError_t, Properties]:
    return OK, Properties(gpu.name)


def cudaDeviceGetAttribute(gpu: Gpu, kind: cudaDeviceAttr, device: int) -> tuple[cudaError_t, int]:
    return OK, gpu.capability[kind - cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor]


def cudaMemGetInfo(gpu: Gpu) -> tuple[cudaError_t, int, int]:
    return OK, gpu.memory.total_bytes - gpu.memory.live_bytes, gpu.memory.total_bytes


def cudaMalloc(gpu: Gpu, size: int) -> tuple[cudaError_t, int | None]:
    return _allocated(gpu, size, pinned=False)


def cudaMallocHost(gpu: Gpu, size: int) -> tuple[cudaError_t, int | None]:
    return _allocated(gpu, size, pinned=True)


def _allocated(gpu: Gpu, size: int, *, pinned: bool) -> tuple[cudaError_t, int | None]:
    if _breaks_a_capture(gpu):
        return cudaError_t.cudaErrorStreamCaptureUnsupported, None
    address = gpu.memory.allocate(size, pinned=pinned)
    return (OK, address) if address is not None else (cudaError_t.cudaErrorMemoryAllocation, None)


def _breaks_a_capture(gpu: Gpu) -> bool:
    """Of a call that no stream may be captured during: whether one is."""
    capturing = [stream for stream in gpu.streams.values() if stream.captured is not None]
    for stream in capturing:
        stream.capture_is_broken = True
    return bool(capturing)


def cudaFree(gpu: Gpu, address: int) -> tuple[cudaError_t]:
    if _breaks_a_capture(gpu):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    return (OK if gpu.memory.free(address, pinned=False) else INVALID,)


def cudaFreeHost(gpu: Gpu, address: int) -> tuple[cudaError_t]:
    if _breaks_a_capture(gpu):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    return (OK if gpu.memory.free(address, pinned=True) else INVALID,)


def cudaMemcpyAsync(
    gpu: Gpu, target: int, source: int, size: int, kind: cudaMemcpyKind, stream: Stream
) -> tuple[cudaError_t]:
    gpu.put(stream, lambda: gpu.copy(target, source, size))
    return (gpu.failed,)


def cudaMemcpy2DAsync(
    gpu: Gpu,
    target: int,
    target_pitch: int,
    source: int,
    source_pitch: int,
    width: int,
    rows: int,
    kind: cudaMemcpyKind,
    stream: Stream,
) -> tuple[cudaError_t]:
    if width > target_pitch or width > source_pitch:
        return (INVALID,)

    def work() -> None:
        for row in range(rows):
            gpu.copy(target + row * target_pitch, source + row * source_pitch, width)

    gpu.put(stream, work)
    return (gpu.failed,)


def cudaMemsetAsync(gpu: Gpu, address: int, value: int, size: int, stream: Stream) -> tuple[cudaError_t]:
    gpu.put(stream, lambda: gpu.memory.bytes(address, size).fill(value))
    return (gpu.failed,)


def cudaStreamCreateWithFlags(gpu: Gpu, flags: int) -> tuple[cudaError_t, Stream]:
    gpu._numbers += 1
    gpu.streams[gpu._numbers] = made = Stream(gpu._numbers)
    return OK, made


def cudaStreamDestroy(gpu: Gpu, stream: Stream) -> tuple[cudaError_t]:
    gpu.run(stream, stream.put)
    del gpu.streams[int(stream)]
    return (OK,)


def cudaStreamSynchronize(gpu: Gpu, stream: Stream) -> tuple[cudaError_t]:
    if stream.captured is not None:
        stream.capture_is_broken = True
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    gpu.run(stream, stream.put)
    return (gpu.failed,)


def cudaDeviceSynchronize(gpu: Gpu) -> tuple[cudaError_t]:
    if _breaks_a_capture(gpu):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    for stream in reversed(list(gpu.streams.values())):
        gpu.run(stream, stream.put)
    return (gpu.failed,)


def cudaEventCreateWithFlags(gpu: Gpu, flags: int) -> tuple[cudaError_t, Event]:
    made = Event(flags)
    gpu.events.add(made)
    return OK, made


def cudaEventDestroy(gpu: Gpu, event: Event) -> tuple[cudaError_t]:
    gpu.events.remove(event)
    return (OK,)


def cudaEventRecord(gpu: Gpu, event: Event, stream: Stream) -> tuple[cudaError_t]:
    if event.tells_time:
        event.reached = None

        def reach() -> None:
            event.reached = time.perf_counter()

        gpu.put(stream, reach)
    event.at = (stream, stream.put)
    return (gpu.failed,)


def cudaEventElapsedTime(gpu: Gpu, begin: Event, end: Event) -> tuple[cudaError_t, float | None]:
    if not (begin.tells_time and end.tells_time):
        return cudaError_t.cudaErrorInvalidResourceHandle, None
    if begin.reached is None or end.reached is None:
        return cudaError_t.cudaErrorNotReady, None
    return OK, (end.reached - begin.reached) * 1000


def cudaEventSynchronize(gpu: Gpu, event: Event) -> tuple[cudaError_t]:
    if event.at is not None:
        gpu.run(*event.at)
    return (gpu.failed,)


def cudaStreamWaitEvent(gpu: Gpu, stream: Stream, event: Event, flags: int) -> tuple[cudaError_t]:
    at = event.at
    if at is not None:
        gpu.put(stream, lambda: gpu._run(*at))
    return (gpu.failed,)


def cudaStreamBeginCapture(gpu: Gpu, stream: Stream, mode: cudaStreamCaptureMode) -> tuple[cudaError_t]:
    if stream.captured is not None:
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    stream.captured, stream.capture_is_broken = [], False
    return (OK,)


def cudaStreamEndCapture(gpu: Gpu, stream: Stream) -> tuple[cudaError_t, Any]:
    captured, stream.captured = stream.captured, None
    if stream.capture_is_broken or captured is None:
        return cudaError_t.cudaErrorStreamCaptureInvalidated, None
    return OK, _kept(gpu, tuple(captured))


def cudaGraphInstantiate(gpu: Gpu, graph: Any, flags: int) -> tuple[cudaError_t, Any]:
    return OK, _kept(gpu, graph.work)


def cudaGraphDestroy(gpu: Gpu, graph: Any) -> tuple[cudaError_t]:
    gpu.graphs.remove(graph)
    return (OK,)


def cudaGraphExecDestroy(gpu: Gpu, graph: Any) -> tuple[cudaError_t]:
    gpu.graphs.remove(graph)
    return (OK,)


def cudaGraphLaunch(gpu: Gpu, graph: Any, stream: Stream) -> tuple[cudaError_t]:
    if graph not in gpu.graphs:
        return (INVALID,)
    for work in graph.work:
        gpu.put(stream, work)
    return (gpu.failed,)


class _Graph:
    def __init__(self, work: tuple[Callable[[], None], ...]) -> None:
        self.work = work


def _kept(gpu: Gpu, work: tuple[Callable[[], None], ...]) -> _Graph:
    made = _Graph(work)
    gpu.graphs.add(made)
    return made


FUNCTIONS = [value for name, value in list(globals().items()) if name.startswith("cuda") and callable(value)]
FUNCTIONS = [function for function in FUNCTIONS if not isinstance(function, type)]
