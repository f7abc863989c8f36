"""TensorRT or TensorRT-RTX, as far as running engines goes: its module, its version, what it says."""

from __future__ import annotations

import importlib
from collections import deque
from typing import Any

from llamavid.contract import DType
from llamavid.errors import DeviceError
from llamavid.targets import Library

_MODULES = {
    Library.TENSORRT: ("tensorrt",),
    Library.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),  # NVIDIA's index, and PyPI
}
_NAMES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32", "int64": "INT64"}
_KEPT_LINES = 4


class TensorRt:
    """The bindings' module as `api`, and a logger that keeps errors for ours."""

    def __init__(self, library: Library) -> None:
        """Raises `DeviceError` where it is not installed."""
        self.library = library
        self.api = _module(library)
        self.version: str = self.api.__version__
        self.log = _listener(self.api)

    def data_type(self, dtype: DType) -> Any:
        return getattr(self.api.DataType, _NAMES[dtype.value])

    def words(self) -> str:
        """What it complained of since the last time."""
        lines = "; ".join(self.log.lines)
        self.log.lines.clear()
        return lines or "no reason given"


def _module(library: Library) -> Any:
    failed = []
    for name in _MODULES[library]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
            failed.append(str(error).splitlines()[0] if str(error) else name)
    where = "NVIDIA's index or JetPack" if library is Library.TENSORRT else "PyPI"
    raise DeviceError(
        f"{library.product} is not installed ({failed[-1]})",
        next_step=f"Install it from {where}: README.md says how. Or pass --on cpu.",
    )


def _listener(api: Any) -> Any:
    serious = (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR)

    class Listener(api.ILogger):
        """Called by TensorRT, from any of its threads."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=_KEPT_LINES)

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self.lines.append(message.strip())

    return Listener()
