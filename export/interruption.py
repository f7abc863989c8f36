"""Ctrl-C while a library builds: noted there, raised when the library has stopped.

An exception out of a callback would go through the library's own code, which does not expect one.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """In a `with` block SIGINT and SIGTERM set `asked`; on leaving it they are what they were.

    `KeyboardInterrupt` is raised when the block ends, if one came. Outside the main thread it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._before[kind] = signal.signal(kind, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signal_kind, handler in self._before.items():
            signal.signal(signal_kind, handler)
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
