"""Where the time went, by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Timings:
    """Milliseconds by stage; a stage entered again adds up."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1000
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent

    def restart(self, *stages: str) -> None:
        """Counts these stages from zero: a new question, or a new video."""
        for name in stages:
            self.milliseconds.pop(name, None)

    def rounded(self) -> dict[str, float]:
        return {name: round(spent, 3) for name, spent in self.milliseconds.items()}
