"""The chosen set fits its budget, the file says why, and an edited file is taken at its word."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamavid.calibrated import save_calibration
from llamavid.calibration.choosing import chosen_plan
from llamavid.calibration.modules import graph_modules
from llamavid.calibration.outputs import Chosen, ModuleError, Output
from llamavid.calibration.plan import KEEP, Measure, Plan, load_plan, planned, remeasured, save_plan
from llamavid.calibration.sensitivity import combined_errors, sensitivity
from llamavid.errors import LlamaVidError, ScalesError, UsageError
from llamavid.model.checkpoint import open_checkpoint
from llamavid.scales import Divided, Migration, Scales, load_scales
from tests.calibration.naive import FRAGILE, Given, fragile_checkpoint, given, golden

TINY = Path(__file__).parents[2] / "llamavid" / "tiny" / "release" / "checkpoint"


def measure_of(found: Given) -> Measure:
    return lambda chosen: combined_errors(found.checkpoint, found.calibration, found.sample, chosen)


def plan_of(
    found: Given, budgets: Mapping[Output, float] | None = None, errors: tuple[ModuleError, ...] | None = None
) -> Plan:
    return chosen_plan(
        found.calibration.scales,
        graph_modules(found.checkpoint.config),
        sensitivity(found.checkpoint, found.calibration, found.sample) if errors is None else errors,
        measure=measure_of(found),
        budgets=budgets,
    )


@cache
def golden_errors() -> tuple[ModuleError, ...]:
    found = golden()
    return sensitivity(found.checkpoint, found.calibration, found.sample)


@cache
def golden_plan() -> Plan:
    return plan_of(golden(), {Output.FRAME_TOKENS: 0.02, Output.LOGITS: 0.08}, golden_errors())


def test_without_a_budget_everything_is_rounded() -> None:
    plan = plan_of(golden(), errors=golden_errors())
    modules = graph_modules(golden().checkpoint.config)
    assert plan.chosen == {graph: tuple(names) for graph, names in modules.items()}
    assert set(plan.measured) == {"frame_tokens", "logits"}


@pytest.mark.parametrize("part", [0.5, 0.2, 0.05])
def test_what_is_chosen_fits_its_budget_and_little_more_would(part: float) -> None:
    found = golden()
    everything = plan_of(found, errors=golden_errors()).measured
    budgets = {output: part * everything[output.value] for output in Output}
    plan = plan_of(found, budgets, golden_errors())
    together = measure_of(found)(plan.chosen)
    for output in Output:
        assert together[output] <= budgets[output]
        assert together[output] == pytest.approx(plan.measured[output.value], rel=1e-3)
    for output in Output:
        graph, module = cheapest_kept(plan, output)
        more = {**plan.chosen, graph: (*plan.chosen[graph], module)}
        assert together[output] >= 0.95 * budgets[output] or measure_of(found)(more)[output] > budgets[output]


def cheapest_kept(plan: Plan, output: Output) -> tuple[str, str]:
    kept = [
        (module.error**2 / module.share, graph, name)
        for graph in output.graphs
        for name, module in plan.graphs[graph].modules.items()
        if module.format == KEEP and module.error is not None
    ]
    return min(kept)[1:]


def test_on_the_trained_model_too() -> None:
    found = given(open_checkpoint(TINY))
    plan = plan_of(found, {Output.FRAME_TOKENS: 0.02, Output.LOGITS: 0.05})
    together = measure_of(found)(plan.chosen)
    assert together[Output.FRAME_TOKENS] <= 0.02
    assert together[Output.LOGITS] <= 0.05
    assert plan.graphs["vision"].of("int8")
    assert plan.graphs["llm"].of("int4")
    assert plan.graphs["llm"].of(KEEP)


def test_a_fragile_module_is_kept_and_the_rest_is_not(tmp_path: Path) -> None:
    found = given(fragile_checkpoint(tmp_path), {"vision": "int8"})
    alone = {one.module: one.error for one in sensitivity(found.checkpoint, found.calibration, found.sample)}
    plan = plan_of(found, {Output.FRAME_TOKENS: alone[FRAGILE] / 2})
    assert plan.graphs["vision"].of(KEEP) == (FRAGILE,)
    assert plan.measured["frame_tokens"] <= alone[FRAGILE] / 2


def test_a_module_that_gives_no_number_is_kept_and_told(tmp_path: Path) -> None:
    """A migration that is too large for float32: a weight that it multiplies becomes inf."""
    found = given(fragile_checkpoint(tmp_path), {"vision": "int8"})
    width, scales = found.checkpoint.config.vision.width, found.calibration.scales
    values = (Divided("blocks.1.attn.qkv.weight", 2 * width), Divided("blocks.1.attn.v_bias"))
    vision = replace(scales.graphs["vision"], migrations=(Migration("huge", values, (FRAGILE,)),))
    calibration = replace(
        found.calibration,
        scales=replace(scales, graphs={"vision": vision}),
        vectors={"huge": np.full(width, 3e38, np.float32)},
    )
    for budgets in (None, {Output.FRAME_TOKENS: 0.5}):
        plan = plan_of(replace(found, calibration=calibration), budgets)
        module = plan.graphs["vision"].modules[FRAGILE]
        assert (module.format, module.error) == (KEEP, None)
        assert module.why == "rounded alone, it gives what is no number"
        assert plan.graphs["vision"].of(KEEP) == (FRAGILE,)
        assert math.isfinite(plan.measured["frame_tokens"])


def test_modules_that_break_only_together_are_taken_apart() -> None:
    """Measured alone all are harmless, and everything at once gives no number."""
    found = golden()
    names = [(one.graph, one.module) for one in golden_errors()]

    def measure(chosen: Chosen) -> dict[Output, float]:
        errors = measure_of(found)(chosen)
        broken = {("vision", "blocks.0.attn.qkv"), ("vision", "blocks.2.mlp.fc2")}
        together = {(graph, name) for graph in chosen for name in chosen[graph]}
        return {output: math.nan if broken <= together else error for output, error in errors.items()}

    plan = chosen_plan(
        found.calibration.scales, graph_modules(found.checkpoint.config), golden_errors(), measure=measure
    )
    assert 0 < sum(map(len, plan.chosen.values())) < len(names)
    assert math.isfinite(plan.measured["frame_tokens"])


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    budgets = {Output.FRAME_TOKENS: 0.02, Output.LOGITS: 0.08}
    for name in "ab":
        save_plan(plan_of(golden(), budgets), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_has_a_line_a_module_in_the_order_of_the_model(tmp_path: Path) -> None:
    save_plan(golden_plan(), tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    first = next(at for at, line in enumerate(lines) if "blocks.0.attn.qkv" in line)
    written = [json.loads("{" + line.strip().rstrip(",") + "}") for line in lines[first : first + 12]]
    names = list(graph_modules(golden().checkpoint.config)["vision"])
    assert [name for line in written for name in line] == names
    assert all(list(values) == ["format", "error", "share"] for line in written for values in line.values())
    shares = [
        m.share for g in ("vision", "content", "context") for m in golden_plan().graphs[g].modules.values()
    ]
    assert sum(shares) == pytest.approx(1, abs=1e-4)


def loaded(file: Path, change: Callable[[Any], object] = lambda document: None) -> Plan:
    """What is read after somebody has edited the file."""
    save_plan(golden_plan(), file)
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    found = golden()
    return read_plan(file, found.calibration.scales)


def read_plan(file: Path, scales: Scales) -> Plan:
    modules = graph_modules(golden().checkpoint.config)
    return load_plan(file, modules=modules, checkpoint=scales.checkpoint, graphs=scales.graphs)


def modules_of(document: Any, graph: str) -> Any:
    return document["graphs"][graph]["modules"]


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    assert loaded(tmp_path / "plan.json") == golden_plan()
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_an_edited_plan_is_honoured_and_measured_anew(tmp_path: Path) -> None:
    def edit(document: Any) -> None:
        for name, module in modules_of(document, "vision").items():
            module["format"] = "int8" if name == FRAGILE else KEEP
        for graph in ("content", "context", "llm"):
            for module in modules_of(document, graph).values():
                module["format"] = KEEP
        document["measured"] = {"frame_tokens": 0.7}

    found = golden()
    plan = remeasured(loaded(tmp_path / "plan.json", edit), measure_of(found))
    alone = {one.module: one.error for one in golden_errors()}[FRAGILE]
    assert plan.measured == {"frame_tokens": pytest.approx(alone, rel=1e-3), "logits": 0}
    scales = planned(found.calibration.scales, plan)
    assert list(scales.graphs["vision"].steps) == [FRAGILE]
    assert len(scales.graphs["vision"].kept) == 11
    saved = save_calibration(replace(found.calibration, scales=scales), tmp_path / "scales.json")
    assert load_scales(tmp_path / "scales.json") == saved.scales


def _first(document: Any) -> Any:
    return modules_of(document, "vision")["blocks.0.attn.qkv"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: modules_of(d, "vision").update(lm_head=_first(d)),
            "modules of vision: 'lm_head' does not exist",
        ),
        (lambda d: modules_of(d, "vision").pop(FRAGILE), f"modules of vision: {FRAGILE} is missing"),
        (
            lambda d: _first(d).update(format="int7"),
            "vision: blocks.0.attn.qkv has format 'int7'; expected int8 or keep",
        ),
        (lambda d: _first(d).update(format="fp8"), "vision: blocks.0.attn.qkv has format 'fp8'"),
        (lambda d: d["graphs"]["llm"].update(format="fp8"), "llm is 'fp8'; expected int4, as calibrated"),
        (lambda d: d["graphs"].pop("context"), "graphs: context is missing"),
        (lambda d: d["graphs"].update(audio=d["graphs"]["llm"]), "graphs: 'audio' does not exist"),
        (lambda d: d.update(checkpoint="ab" * 32), "is of checkpoint abababababab"),
        (lambda d: d.update(format_version=2), "has format 2; expected 1"),
        (lambda d: _first(d).pop("error"), "'error'"),
        (lambda d: _first(d).update(surprise=1), "'surprise'"),
        (lambda d: d["measured"].update(logits=math.nan), "measured.logits is nan"),
        (lambda d: d["budgets"].update(taste=1.0), "budgets.taste is 1.0"),
        (lambda d: d.update(graphs=[]), "graphs is not an object"),
    ],
)
def test_an_edit_that_cannot_be_is_named_in_one_line(
    tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    with pytest.raises(ScalesError) as error:
        loaded(tmp_path / "plan.json", change)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"[" * 100000, b'{"format_version": 1}'])
def test_what_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    found = golden()
    with pytest.raises(ScalesError, match=r"plan\.json"):
        read_plan(file, found.calibration.scales)


def test_a_missing_plan_is_one_line(tmp_path: Path) -> None:
    found = golden()
    with pytest.raises(ScalesError, match="cannot be read"):
        read_plan(tmp_path / "plan.json", found.calibration.scales)


def test_a_module_without_a_scale_cannot_be_edited_in(tmp_path: Path) -> None:
    """Its input was constant, so that it has no step: the plan says so, and keeps it."""
    found = golden()
    scales = found.calibration.scales
    vision = scales.graphs["vision"]
    dead = replace(vision, steps={n: s for n, s in vision.steps.items() if n != FRAGILE}, kept=(FRAGILE,))
    scales = replace(scales, graphs={**scales.graphs, "vision": dead})
    modules = graph_modules(found.checkpoint.config)
    plan = chosen_plan(scales, modules, (), measure=measure_of(found))
    assert plan.graphs["vision"].modules[FRAGILE].why == "it has no scale"
    assert plan.graphs["vision"].of(KEEP) == (FRAGILE,)
    text = plan.to_json().replace('"keep"', '"int8"')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ScalesError, match="has no scale; expected keep"):
        read_plan(tmp_path / "plan.json", scales)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_is_a_number_above_0(budget: float) -> None:
    with pytest.raises(UsageError, match="a budget of"):
        plan_of(golden(), {Output.FRAME_TOKENS: budget}, golden_errors())


def test_a_budget_for_what_was_not_measured_is_refused() -> None:
    with pytest.raises(LlamaVidError, match="a budget for logits and nothing measured"):
        plan_of(golden(), {Output.LOGITS: 0.1}, tuple(one for one in golden_errors() if one.graph != "llm"))
