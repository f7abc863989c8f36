"""CUDA's runtime by cuda-python: calls that are checked, streams, events and captured graphs.

Every call that fails is a `DeviceError` with the call's name and CUDA's own words. Pointers are plain ints.
Knows nothing of TensorRT.

Note [Late work]
    What is put on a stream runs later, in that stream's order and in no order with other streams. So whoever
    reads what another stream writes, or writes what another stream reads, has its stream wait for that one;
    and the host touches memory that a stream uses only after `synchronize`.

Note [Given back]
    What is made here and in `buffers` is freed by `close`, or when nothing refers to it any more: an error in
    the middle of opening something leaves nothing. The GPU finishes first, since its work may still use it.
    Both end a capture badly, whichever stream's it is. So they wait for another thread's, and what is
    forgotten during one's own, by a collection of garbage, is given back after it.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from llamavid.errors import DeviceError

_MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # of cuda-python from 12.6 on, and before
_INSTALL = 'pip install "llamavid[gpu]"'


class Cuda:
    """The runtime's functions, checked: `cuda("cudaMalloc", 1 << 20)` gives what CUDA gives."""

    def __init__(self) -> None:
        """Raises `DeviceError` where cuda-python is missing. Looks for no GPU."""
        self.api = _cuda_python()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """One value, or a tuple of several, or None. Raises `DeviceError`."""
        code, *values = getattr(self.api, name)(*arguments)
        if code != self.api.cudaError_t.cudaSuccess:
            self.api.cudaGetLastError()  # told here; left there, TensorRT would take it for its own
            raise DeviceError(f"{name} failed: {self.words(code)}", next_step=_next_step(self.api, code))
        return values[0] if len(values) == 1 else tuple(values) or None

    def words(self, code: Any) -> str:
        """An error code as CUDA explains it."""
        _, text = self.api.cudaGetErrorString(code)
        said = text.decode() if isinstance(text, bytes) else str(text)
        return f"{said} ({code.name})"

    def free_bytes(self) -> int:
        """Of the GPU's memory."""
        free, _ = self("cudaMemGetInfo")
        return int(free)


class Event:
    """A place in a stream's work. Waiting for one that was never recorded waits for nothing."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = cuda("cudaEventCreateWithFlags", self._flags(cuda))
        self.close = owned(self, cuda, "cudaEventDestroy", self.handle)

    def record(self, stream: Stream) -> None:
        self._cuda("cudaEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Returns when the stream has come here."""
        self._cuda("cudaEventSynchronize", self.handle)

    def _flags(self, cuda: Cuda) -> int:
        return int(cuda.api.cudaEventDisableTiming)


class TimedEvent(Event):
    """One that knows when the stream came there, by the GPU's own clock: about half a microsecond."""

    def milliseconds_since(self, earlier: TimedEvent) -> float:
        """Both must have been reached."""
        return float(self._cuda("cudaEventElapsedTime", earlier.handle, self.handle))

    def _flags(self, cuda: Cuda) -> int:
        return int(cuda.api.cudaEventDefault)


class Stream:
    """Work that runs in the order it was put in; Note [Late work]."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self._reached = Event(cuda)
        self.handle = cuda("cudaStreamCreateWithFlags", cuda.api.cudaStreamNonBlocking)
        self._destroy = owned(self, cuda, "cudaStreamDestroy", self.handle)

    def copy(self, target: int, source: int, size: int) -> None:
        """`size` bytes, between any two memories. The host's must be pinned, and stay as it is until then."""
        kind = self.cuda.api.cudaMemcpyKind.cudaMemcpyDefault
        self.cuda("cudaMemcpyAsync", target, source, size, kind, self.handle)

    def copy_rows(
        self, target: int, source: int, *, width: int, rows: int, target_pitch: int, source_pitch: int
    ) -> None:
        """`rows` pieces of `width` bytes; from one to the next it is a pitch."""
        kind = self.cuda.api.cudaMemcpyKind.cudaMemcpyDefault
        pitches = (target, target_pitch, source, source_pitch)
        self.cuda("cudaMemcpy2DAsync", *pitches, width, rows, kind, self.handle)

    def fill_zero(self, target: int, size: int) -> None:
        self.cuda("cudaMemsetAsync", target, 0, size, self.handle)

    def wait_for(self, other: Stream | Event) -> None:
        """What is put in from now on runs after what `other` holds now."""
        if isinstance(other, Stream):
            other._reached.record(other)
            other = other._reached
        self.cuda("cudaStreamWaitEvent", self.handle, other.handle, 0)

    def synchronize(self) -> None:
        """Returns when all that was put in has run. Raises `DeviceError` where some of it failed."""
        self.cuda("cudaStreamSynchronize", self.handle)

    def captured(self, work: Callable[[], None]) -> Graph:
        """What `work` puts in, as one thing to launch. It does not run now. Its addresses are fixed."""
        with _turn.capture():
            return self._captured(work)

    def _captured(self, work: Callable[[], None]) -> Graph:
        mode = self.cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.cuda("cudaStreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            _, graph = self.cuda.api.cudaStreamEndCapture(self.handle)  # broken, and maybe none
            if graph:
                self.cuda.api.cudaGraphDestroy(graph)
            self.cuda.api.cudaGetLastError()  # a capture's own; what ended it is told
            raise
        graph = self.cuda("cudaStreamEndCapture", self.handle)
        try:
            return Graph(self.cuda, self.cuda("cudaGraphInstantiate", graph, 0))
        finally:
            self.cuda("cudaGraphDestroy", graph)

    def launch(self, graph: Graph) -> None:
        self.cuda("cudaGraphLaunch", graph.handle, self.handle)

    def close(self) -> None:
        """Waits for what is left, whatever becomes of it."""
        self._destroy()
        self._reached.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Graph:
    """Captured work, ready to launch any number of times."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.handle = handle
        self.close = owned(self, cuda, "cudaGraphExecDestroy", handle)


def owned(owner: object, cuda: Cuda, destroy: str, handle: Any) -> Callable[[], object]:
    """What gives `handle` back, once, by Note [Given back]; called too when `owner` is forgotten."""
    give_back = weakref.finalize(owner, _given_back, cuda.api, destroy, handle)
    give_back.atexit = False  # the process gives it back, and CUDA may be gone by then
    return give_back


def _given_back(api: Any, destroy: str, handle: Any) -> None:
    def give_back() -> None:
        # What failed before is told by the call that made it; here all that can be done is to give back.
        api.cudaDeviceSynchronize()
        getattr(api, destroy)(handle)

    _turn.give_back(give_back)


class _Turn:
    """Captures and what they must not meet, one at a time in this process; Note [Given back]."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._captures = False
        self._later: list[Callable[[], None]] = []

    @contextmanager
    def capture(self) -> Iterator[None]:
        with self._lock:
            self._captures = True
            try:
                yield
            finally:
                self._captures = False
                while self._later:
                    self._later.pop()()

    def give_back(self, act: Callable[[], None]) -> None:
        with self._lock:
            if self._captures:  # this thread's, whose turn it is
                self._later.append(act)
            else:
                act()


_turn = _Turn()


def _cuda_python() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DeviceError("cuda-python is not installed", expected="cuda.bindings", next_step=f"Run: {_INSTALL}.")


def _next_step(api: Any, code: Any) -> str:
    if code == api.cudaError_t.cudaErrorMemoryAllocation:
        return "Free some of the GPU's memory, or take a shorter video or a smaller precision."
    return "Look at the GPU with nvidia-smi, then try again in a new process."
