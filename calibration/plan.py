"""plan.json: which modules are rounded and which stay, a line a module, for people to read and change.

    plan = load_plan(file, modules=graph_modules(config), checkpoint=scales.checkpoint, graphs=scales.graphs)
    scales = planned(scales, plan)

A file that was edited is taken as it is: a module's format is the graph's, or `keep`. The numbers beside it
say why; of an edited file the combined error is measured anew.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llamavid.calibration.outputs import Chosen, Output
from llamavid.config import dataclass_from_json
from llamavid.errors import ScalesError
from llamavid.replacing import replacing
from llamavid.scales import GraphScales, Scales

FILE = "plan.json"
FORMAT_VERSION = 1
KEEP = "keep"
_SIZE_LIMIT = 16 << 20  # bytes; a 13B model's are 60 kB
_AGAIN = "Correct it, or leave it out: llamavid calibrate then makes one."

Measure = Callable[[Chosen], Mapping[Output, float]]  # modules rounded together -> error of each output


@dataclass(frozen=True)
class ModulePlan:
    """Of one module.

    Args:
        format: the graph's, or `keep`.
        error: of its output when this module alone is rounded; None: it was not measured, or is no number.
        share: of the multiplications that make its output, 0 to 1.
        divergence: as in `ModuleError`.
        why: of a module that could not be chosen.
    """

    format: str
    error: float | None
    share: float
    divergence: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class GraphPlan:
    """Of one graph, in the order of the model."""

    format: str  # of what is rounded
    modules: dict[str, ModulePlan]

    def of(self, format: str) -> tuple[str, ...]:
        """The modules of that format."""
        return tuple(name for name, module in self.modules.items() if module.format == format)


@dataclass(frozen=True)
class Plan:
    """The whole file.

    Args:
        checkpoint: fingerprint, sha256.
        budgets: the largest error that was allowed, by output.
        measured: the error with everything rounded that the plan rounds, by output.
    """

    format_version: int
    checkpoint: str
    budgets: dict[str, float]
    measured: dict[str, float]
    graphs: dict[str, GraphPlan]

    @property
    def chosen(self) -> dict[str, tuple[str, ...]]:
        """Graph -> what is rounded."""
        return {name: graph.of(graph.format) for name, graph in self.graphs.items()}

    def __post_init__(self) -> None:
        """Raises `ValueError` naming the first number that cannot be."""
        for what, errors in (("budgets", self.budgets), ("measured", self.measured)):
            for output, error in errors.items():
                if output not in {known.value for known in Output} or not 0 <= error < math.inf:
                    raise ValueError(f"{what}.{output} is {error}")

    def to_json(self) -> str:
        """A line a module."""
        return "\n".join(_lines(self)) + "\n"


def load_plan(
    file: Path,
    *,
    modules: Mapping[str, Collection[str]],
    checkpoint: str,
    graphs: Mapping[str, GraphScales],
) -> Plan:
    """Reads and checks a plan, edited or not.

    Args:
        modules: every module of each graph of the model.
        checkpoint: fingerprint of the one that it must be of.
        graphs: those that it must have; their formats, and what they keep in any case.

    Raises:
        ScalesError: it is missing or damaged, of another checkpoint or version, or has a graph, module or
            format too many or too few.
    """
    data = _document(file)
    if data.get("format_version") != FORMAT_VERSION:
        raise ScalesError(
            f"{file} has format {data.get('format_version')!r:.40}",
            expected=f"{FORMAT_VERSION}",
            next_step=_AGAIN,
        )
    try:
        plan = dataclass_from_json(Plan, data)
    except (ValueError, RecursionError) as error:
        raise ScalesError(f"{file} is damaged ({error})", next_step=_AGAIN) from error
    if plan.checkpoint != checkpoint:
        raise ScalesError(
            f"{file} is of checkpoint {plan.checkpoint:.12}...",
            expected=f"{checkpoint[:12]}..., the one that is calibrated",
            next_step=_AGAIN,
        )
    _require_same(f"{file}: graphs", plan.graphs, graphs)
    for name, graph in plan.graphs.items():
        _require_same(f"{file}: modules of {name}", graph.modules, modules[name])
        _require_formats(f"{file}: {name}", graph, graphs[name])
    return plan


def save_plan(plan: Plan, file: Path) -> None:
    """Written beside and renamed. Raises `ScalesError` when the place cannot be written."""
    try:
        with replacing(file) as beside:
            beside.write_text(plan.to_json(), encoding="utf-8")
    except OSError as error:
        raise ScalesError(
            f"{file} cannot be written ({error.strerror})", next_step="Choose another place."
        ) from error


def remeasured(plan: Plan, measure: Measure) -> Plan:
    """The plan with the combined error of what it says now.

    Raises:
        ScalesError: together the modules give what is no number.
    """
    found = measure(plan.chosen)
    for output, error in found.items():
        if not math.isfinite(error):
            raise ScalesError(
                f"with this plan the {output.value.replace('_', ' ')} are no numbers",
                expected="fewer modules that are rounded",
                next_step=_AGAIN,
            )
    return replace(plan, measured={output.value: significant(error) for output, error in found.items()})


def planned(scales: Scales, plan: Plan) -> Scales:
    """The scales, with what the plan keeps kept."""
    graphs = {}
    for name, graph in scales.graphs.items():
        rounded = plan.graphs[name].of(plan.graphs[name].format)
        graphs[name] = replace(
            graph,
            steps={module: step for module, step in graph.steps.items() if module in rounded},
            importance={module: vector for module, vector in graph.importance.items() if module in rounded},
            kept=plan.graphs[name].of(KEEP),
        )
    return replace(scales, graphs=graphs)


def significant(number: float) -> float:
    """Four digits, which is more than a sample of some frames tells."""
    return float(f"{number:.4g}")


def _lines(plan: Plan) -> Iterator[str]:
    head = {name: value for name, value in dataclasses.asdict(plan).items() if name != "graphs"}
    yield json.dumps(head, indent=1).removesuffix("\n}") + ","
    yield ' "graphs": {'
    for at, (name, graph) in enumerate(plan.graphs.items(), 1):
        yield f'  {json.dumps(name)}: {{\n   "format": {json.dumps(graph.format)},\n   "modules": {{'
        for line, (module, values) in enumerate(graph.modules.items(), 1):
            words = {k: v for k, v in dataclasses.asdict(values).items() if v is not None or k == "error"}
            yield f"    {json.dumps(module)}: {json.dumps(words)}" + "," * (line < len(graph.modules))
        yield "   }\n  }" + "," * (at < len(plan.graphs))
    yield " }\n}"


def _document(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        if size > _SIZE_LIMIT:
            raise ScalesError(f"{file} has {size} bytes", expected=f"at most {_SIZE_LIMIT}", next_step=_AGAIN)
        data: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise ScalesError(f"{file} cannot be read ({error.strerror})", next_step=_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise ScalesError(f"{file} is not a plan ({error})", next_step=_AGAIN) from error
    if not isinstance(data, dict):
        raise ScalesError(f"{file} is not a plan", expected="an object", next_step=_AGAIN)
    return data


def _require_same(where: str, found: Collection[str], expected: Collection[str]) -> None:
    for name in found:
        if name not in expected:
            raise ScalesError(f"{where}: {name!r:.80} does not exist", next_step=_AGAIN)
    for name in expected:
        if name not in found:
            raise ScalesError(f"{where}: {name} is missing", next_step=_AGAIN)


def _require_formats(where: str, graph: GraphPlan, wanted: GraphScales) -> None:
    if graph.format != wanted.format:
        raise ScalesError(
            f"{where} is {graph.format!r:.40}", expected=f"{wanted.format}, as calibrated", next_step=_AGAIN
        )
    for module, values in graph.modules.items():
        if values.format not in (graph.format, KEEP):
            raise ScalesError(
                f"{where}: {module} has format {values.format!r:.40}",
                expected=f"{graph.format} or {KEEP}",
                next_step=_AGAIN,
            )
        if values.format != KEEP and module in wanted.kept:
            raise ScalesError(
                f"{where}: {module} is to be {values.format} and has no scale",
                expected=KEEP,
                next_step=_AGAIN,
            )
