"""The largest set of modules whose rounding fits a budget.

The errors of small roundings that know nothing of each other add in squares: what a module costs is its
squared error alone, what it gains are its multiplications. Modules are taken by cost per gain, the cheapest
first. Their sum is a prediction: the set is run together, and the prediction corrected by what was found,
until no larger set holds, or little of the budget is left.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence

from llamavid.calibration.modules import Module
from llamavid.calibration.outputs import ModuleError, Output
from llamavid.calibration.plan import (
    FORMAT_VERSION,
    KEEP,
    GraphPlan,
    Measure,
    ModulePlan,
    Plan,
    significant,
)
from llamavid.errors import UsageError
from llamavid.model.rounded import is_rounded
from llamavid.scales import Scales

_ENOUGH = 0.95  # of a budget; what is left of it is worth no further run of the model
_CORRECTED = 3  # runs that follow the prediction; after them the interval is halved

_NO_NUMBER = "rounded alone, it gives what is no number"
_NO_SCALE = "it has no scale"


def chosen_plan(
    scales: Scales,
    modules: Mapping[str, Mapping[str, Module]],
    found: Sequence[ModuleError],
    *,
    measure: Measure,
    budgets: Mapping[Output, float] | None = None,
) -> Plan:
    """Chooses.

    Args:
        modules: every module of each graph, in the order of the model.
        found: each module's error alone. Where an output was not measured, all its modules are rounded.
        measure: runs several together.
        budgets: the largest error of each output; one without takes everything that gives numbers.

    Raises:
        UsageError: a budget is not above 0, or is for an output that was not measured.
    """
    budgets = budgets or {}
    errors = {(one.graph, one.module): one for one in found}
    rounded: set[tuple[str, str]] = set()
    measured: dict[str, float] = {}
    for output in Output:
        candidates = _candidates(output, scales, modules)
        alone = [errors[name] for name in candidates if name in errors]
        _require_measured(output, budgets, alone)
        if alone:
            chosen, error = _largest_set(output, alone, budgets.get(output, math.inf), measure)
            rounded.update(chosen)
            measured[output.value] = significant(error)
        else:
            rounded.update(candidates)
    return Plan(
        FORMAT_VERSION,
        scales.checkpoint,
        {output.value: budgets[output] for output in Output if output in budgets},
        measured,
        {
            graph: GraphPlan(scales.graphs[graph].format, _modules(graph, scales, modules, errors, rounded))
            for graph in modules
            if graph in scales.graphs
        },
    )


def _candidates(
    output: Output, scales: Scales, modules: Mapping[str, Mapping[str, Module]]
) -> list[tuple[str, str]]:
    return [
        (graph, name)
        for graph in output.graphs
        if graph in scales.graphs
        for name in modules[graph]
        if is_rounded(scales.graphs[graph], name)
    ]


def _require_measured(output: Output, budgets: Mapping[Output, float], alone: list[ModuleError]) -> None:
    if output not in budgets:
        return
    if not 0 < budgets[output] < math.inf:
        raise UsageError(f"a budget of {budgets[output]}", expected="a relative error above 0, as 0.02")
    if not alone:
        raise UsageError(
            f"a budget for {output.value} and nothing measured of it",
            expected="modules that change it, and a sample to measure them on",
        )


def _largest_set(
    output: Output, alone: list[ModuleError], budget: float, measure: Measure
) -> tuple[list[tuple[str, str]], float]:
    """What fits together, and its error."""
    finite = [one for one in alone if math.isfinite(one.error)]
    order = sorted(finite, key=lambda one: one.error**2 / one.multiplications)  # equal ones: as in the model
    predicted = [
        math.sqrt(cost) for cost in itertools.accumulate((one.error**2 for one in order), initial=0.0)
    ]
    holds, error_held, fails, correction = 0, 0.0, len(order) + 1, 1.0
    for run in itertools.count():
        if fails - holds == 1 or error_held >= _ENOUGH * budget:
            return [(one.graph, one.module) for one in order[:holds]], error_held
        guess = bisect.bisect_right(predicted, budget / correction) - 1
        count = min(max(guess, holds + 1), fails - 1) if run < _CORRECTED else (holds + fails) // 2
        error = measure(_by_graph(order[:count]))[output]
        if error <= budget and math.isfinite(error):
            holds, error_held = count, error
        else:
            fails = count
        if math.isfinite(error) and error > 0 and predicted[count] > 0:
            correction = error / predicted[count]
    raise AssertionError("unreachable")


def _by_graph(errors: Sequence[ModuleError]) -> dict[str, frozenset[str]]:
    graphs = {one.graph for one in errors}
    return {graph: frozenset(one.module for one in errors if one.graph == graph) for graph in sorted(graphs)}


def _modules(
    graph: str,
    scales: Scales,
    modules: Mapping[str, Mapping[str, Module]],
    errors: Mapping[tuple[str, str], ModuleError],
    rounded: set[tuple[str, str]],
) -> dict[str, ModulePlan]:
    (output,) = (output for output in Output if graph in output.graphs)
    total = sum(m.multiplications for g in output.graphs for m in modules.get(g, {}).values())
    return {
        name: _module(
            scales.graphs[graph].format if (graph, name) in rounded else KEEP,
            module.multiplications / total,
            errors.get((graph, name)),
            has_scale=is_rounded(scales.graphs[graph], name),
        )
        for name, module in modules[graph].items()
    }


def _module(format: str, share: float, error: ModuleError | None, *, has_scale: bool) -> ModulePlan:
    share = round(share, 6)
    if error is None:
        return ModulePlan(format, None, share, why=None if has_scale else _NO_SCALE)
    if not math.isfinite(error.error):
        return ModulePlan(format, None, share, why=_NO_NUMBER)
    nats = error.divergence
    return ModulePlan(format, significant(error.error), share, None if nats is None else significant(nats))
