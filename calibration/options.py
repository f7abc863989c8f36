"""What a user chooses of a calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from llamavid.calibration.observers import Observer
from llamavid.errors import UsageError
from llamavid.scales import BLOCKS, FORMATS

NONE = "none"
FRAME_GRAPHS = ("vision", "content", "context")
LANGUAGE_GRAPH = "llm"


@dataclass(frozen=True)
class CalibrationOptions:
    """Choices.

    Args:
        frame_format: of the three frame graphs, one of `FORMATS` or `NONE`.
        llm_format: of the language model, the same.
        observer: chooses the steps of int8 and fp8.
        migrate: scales move from inputs to weights where that rounds better; see `llamavid.scales`.
        int4_block: rows of a column that share a scale. With clipped weights and migrated outliers 128 costs
            no answers that show, and a CPU multiplies by it 1.2 to 1.5 times as fast as by 32.
        frame_budget: largest relative error of the frame tokens for a plan; None: all is rounded.
        llm_budget: of the logits, the same.
        plan: an edited plan.json to follow, instead of choosing one.
        template: of the prompts that the language model is watched with.

    Raises:
        UsageError: a format or block does not exist, there is nothing to do, or a budget cannot be kept.
    """

    frame_format: str = "int8"
    llm_format: str = "int4"
    observer: Observer = Observer.OUTPUT
    migrate: bool = True
    int4_block: int = 128
    frame_budget: float | None = None
    llm_budget: float | None = None
    plan: Path | None = None
    template: str = "vicuna_v1"

    def __post_init__(self) -> None:
        for what, format in (("frame format", self.frame_format), ("language model format", self.llm_format)):
            if format not in (*FORMATS, NONE):
                raise UsageError(f"{what} {format!r}", expected=" or ".join((*FORMATS, NONE)))
        if self.int4_block not in BLOCKS:
            raise UsageError(f"int4 block {self.int4_block}", expected=" or ".join(map(str, BLOCKS)))
        if {self.frame_format, self.llm_format} == {NONE}:
            raise UsageError(
                "neither the frame graphs nor the language model have a format",
                expected="one of them at least",
                next_step=f"Choose {', '.join(FORMATS)}.",
            )

        self._check_budget("frame", self.frame_budget, self.frame_format)
        self._check_budget("llm", self.llm_budget, self.llm_format)

    def format_of(self, graph: str) -> str:
        """Of `vision`, `content`, `context` or `llm`."""
        return self.llm_format if graph == LANGUAGE_GRAPH else self.frame_format

    @property
    def graphs(self) -> tuple[str, ...]:
        """Those that get one."""
        return tuple(graph for graph in (*FRAME_GRAPHS, LANGUAGE_GRAPH) if self.format_of(graph) != NONE)

    def block_of(self, graph: str) -> int | None:
        return self.int4_block if self.format_of(graph) == "int4" else None

    def _check_budget(self, what: str, budget: float | None, format: str) -> None:
        if budget is None:
            return
        if not 0 < budget < math.inf:
            raise UsageError(f"{what} budget {budget}", expected="a relative error above 0, as 0.02")
        if format == NONE:
            raise UsageError(
                f"{what} budget {budget:g} with format none", expected="a format whose error it bounds"
            )
        if self.plan:
            raise UsageError(
                f"{what} budget {budget:g} beside {self.plan}",
                expected="one of them: a budget is what a plan is chosen by",
            )
