"""TensorRT and TensorRT-RTX as one library: which is installed, its version, what it complains of.

Takes a `Library`, gives a `TensorRt` to build with. Versions 10.3 to 11.4 and RTX 1.7 have the same names
for all that is called here; what only some have is asked for with `hasattr` where it is used
(tests/export/test_tensorrt_names.py holds both). Knows nothing of graphs and targets.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from llamavid.errors import DeviceError
from llamavid.targets import Capability, Library, Version, version_of

# NVIDIA's own index has tensorrt_rtx; the wheels on PyPI have the bindings alone.
_MODULES = {
    Library.TENSORRT: ("tensorrt",),
    Library.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_INSTALL = {
    Library.TENSORRT: "Install it from NVIDIA's index, or use the one of JetPack.",
    Library.TENSORRT_RTX: 'Run: pip install "llamavid[tensorrt-rtx]".',
}


@dataclass(frozen=True)
class TensorRt:
    """One of the two libraries, imported.

    Args:
        module: what `import` gave.
        log: its logger: one a process, for the library keeps the first that it is given.
        errors: what it complained of, oldest first; whoever calls it clears them before.
    """

    library: Library
    version: str
    module: Any
    log: Any
    errors: list[str]

    @property
    def label(self) -> str:
        return f"{self.library.product} {self.version}"

    @property
    def numbers(self) -> Version:
        return version_of(self.version)

    @property
    def is_rtx(self) -> bool:
        return self.library is Library.TENSORRT_RTX

    @property
    def has_timing_cache(self) -> bool:
        """TensorRT-RTX has the names; since 1.2 they do nothing."""
        return not self.is_rtx

    def capability(self, wanted: Capability) -> Any:
        """Its value for 8.6. Raises `DeviceError` where it builds for others only."""
        kinds = getattr(self.module, "ComputeCapability", None)
        known = kinds.__members__ if kinds else {}
        name = "SM{}{}".format(*wanted)
        if name not in known:
            names = ", ".join(sorted(set(known) - {"NONE", "CURRENT"}))
            raise DeviceError(f"{self.label} does not build for {name}", expected=names)
        return known[name]


@functools.cache
def open_library(library: Library) -> TensorRt:
    """Imports it. Raises `DeviceError` where it is not installed or cannot be loaded."""
    module = _imported(library)
    errors: list[str] = []
    return TensorRt(library, module.__version__, module, _logger(module, errors), errors)


def _imported(library: Library) -> Any:
    why = ""
    for name in _MODULES[library]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                why = str(error)
        except (ImportError, OSError) as error:  # OSError: a shared library of its own is not there
            why = str(error)
    given = f"{library.product} cannot be loaded ({why})" if why else f"{library.product} is not installed"
    raise DeviceError(given, next_step=_INSTALL[library])


def _logger(module: Any, errors: list[str]) -> Any:
    """Keeps errors for whoever asks; what the library says beside is for its makers."""

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Log()
