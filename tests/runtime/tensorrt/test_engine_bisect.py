"""A bisection of engines names the block that the builder got wrong. The GPU is `tests.standin`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from llamavid.bundle import open_bundle
from llamavid.cli import main
from llamavid.commands.bisecting import Bisection, bisections
from llamavid.commands.engine_bisecting import examined_engine
from llamavid.console import Progress
from llamavid.contract import DType, GraphContract, Lowering, TensorSpec
from llamavid.engines import EngineSet, open_engines
from llamavid.export.blocks import MARK
from llamavid.golden import read_golden
from llamavid.runtime.verify import engine_subject
from tests.runtime.tensorrt.test_commands import miscompile_vision
from tests.standin.engines import write_engines
from tests.standin.install import Machine

Compile = Callable[[EngineSet, str, Path], tuple[bytes, GraphContract]]


@pytest.fixture
def folder(short_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(short_bundle, tmp_path / "bundle")


def builder_that_breaks(block: str | None, builds: list[str]) -> Compile:
    """Of the marked graph, but for the activation of one block, which is another one."""

    def compile_marked(engines: EngineSet, stage: str, file: Path) -> tuple[bytes, GraphContract]:
        builds.append(file.name)
        model = onnx.load(str(file), load_external_data=False)
        for node in model.graph.node:
            if node.name.startswith(f"{block}/"):
                node.op_type = {"Gelu": "Relu", "Sigmoid": "Tanh"}.get(node.op_type, node.op_type)
        file.write_bytes(model.SerializeToString())
        marks = [out.name for out in model.graph.output if out.name.startswith(MARK)]
        own = json.loads(engines.path(stage).read_text())
        shown = [{"name": name, "dtype": "float32", "shape": ["open"], "mode": "OUTPUT"} for name in marks]
        plan = {**own, "onnx": str(file), "tensors": own["tensors"] + shown}
        contract = engines.manifest.engines[stage].contract
        specs = tuple(TensorSpec(name, DType.FLOAT32, ("open",)) for name in marks)
        return json.dumps(plan).encode(), GraphContract(contract.inputs, (*contract.outputs, *specs))

    return compile_marked


def bisected(folder: Path, stage: str, compile_marked: Compile, **sizes: int) -> list[Bisection]:
    write_engines(folder, **sizes)  # type: ignore[arg-type]
    bundle = open_bundle(folder)
    engines = open_engines(bundle, "a100")
    subject = engine_subject(engines, pytest.fail, pytest.fail)
    with examined_engine(bundle, engines, stage, compile_marked) as engine, Progress(quiet=True) as progress:
        return list(bisections(bundle, read_golden(bundle), subject, {stage: 1}, progress, engine=engine))


@pytest.mark.parametrize(
    ("stage", "block", "runs"),
    [
        ("vision", "blocks.0", ["2 frames"]),
        ("vision", "blocks.2", ["2 frames"]),
        ("llm", "layers.0", ["prefill", "decode"]),
        ("llm", "layers.1", ["prefill", "decode"]),
    ],
)
def test_the_block_that_was_built_wrong_is_named_and_the_engine_built_once(
    late: Machine, folder: Path, stage: str, block: str, runs: list[str]
) -> None:
    """A graph that is right says nothing of that: the engine is what ran."""
    builds: list[str] = []
    found = bisected(folder, stage, builder_that_breaks(block, builds), frames=2)
    assert [each.run for each in found] == runs
    assert {each.first and each.first.block for each in found} == {block}
    assert len(builds) == 1
    assert late.counts.runs[builds[0]] == len(runs)
    assert late.leaks() == {}


@pytest.mark.parametrize("stage", ["vision", "content", "context", "llm"])
def test_an_engine_that_was_built_right_has_no_wrong_block(late: Machine, folder: Path, stage: str) -> None:
    found = bisected(folder, stage, builder_that_breaks(None, []))
    assert {each.first for each in found} == {None}
    assert late.leaks() == {}


def test_a_cache_of_one_length_and_a_prefill_of_few_tokens_are_kept_to(late: Machine, folder: Path) -> None:
    length = open_bundle(folder).manifest.model.language.context_length
    sizes = {"cache": (length, length), "prefill": 4}
    found = bisected(folder, "llm", builder_that_breaks("layers.1", []), **sizes)  # type: ignore[arg-type]
    assert {each.first and each.first.block for each in found} == {"layers.1"}


def test_verify_examines_the_engine_where_it_can_be_built(
    late: Machine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The software GPU's builder makes what its set has: an engine whose graph agrees and which does not."""
    miscompile_vision(write_engines(folder, frames=2), tmp_path)
    faulty = builder_that_breaks("blocks.1", [])
    monkeypatch.setattr("llamavid.commands.engine_bisecting.builder", lambda progress: faulty)
    done = CliRunner().invoke(main, ["verify", str(folder), "--target", "a100", "--bisect", "--json"])
    assert done.exit_code == 1
    on_cpu, on_engines = json.loads(done.stdout)["compared"]
    assert {(each["examined"], each["first_wrong"]) for each in on_cpu["bisected"]} == {("graph", None)}
    (found,) = on_engines["bisected"]
    assert (found["graph"], found["examined"], found["first_wrong"]) == ("vision", "engine", "blocks.1")
    assert "engines built anew" in done.stderr
    assert late.leaks() == {}


def test_where_nothing_can_be_built_the_graph_is_examined_and_it_is_said(
    late: Machine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's lean runtime has no builder."""
    monkeypatch.delattr(sys.modules["tensorrt"], "Builder")
    engines = write_engines(folder, lowering=Lowering.STATIC, frames=2)
    miscompile_vision(engines, tmp_path)
    done = CliRunner().invoke(main, ["verify", str(folder), "--target", "a100", "--bisect", "--json"])
    assert done.exit_code == 1
    (said,) = [line for line in done.stderr.splitlines() if "cannot be built here" in line]
    assert "vision cannot be built here (the TensorRT that is installed runs engines and builds none)" in said
    _, on_engines = json.loads(done.stdout)["compared"]
    assert {(each["graph"], each["examined"]) for each in on_engines["bisected"]} == {("vision", "graph")}
    assert {each["first_wrong"] for each in on_engines["bisected"]} == {None}
    assert late.leaks() == {}
