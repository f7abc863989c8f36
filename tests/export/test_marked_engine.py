"""A graph with its blocks as outputs is built as its set's engine was, by the real TensorRT-RTX."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llamavid.bundle import open_bundle
from llamavid.contract import DType
from llamavid.embedded import default_bundle
from llamavid.engines import EngineSet, open_engines
from llamavid.errors import BundleError, DeviceError
from llamavid.export.blocks import Graph, blocks_of, write_marked
from llamavid.export.compilation import Settings, compiled
from llamavid.export.configuration import settings_of
from llamavid.export.job import BuildOptions, Job
from llamavid.export.marked_engine import compile_marked
from llamavid.export.profiles import Sizes
from llamavid.export.to_engine import build_engines
from llamavid.targets import find_target
from tests.export.rtx import tensorrt_rtx

STAGES = ("content", "vision", "llm")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """For SM80, of few sizes."""
    bundle = open_bundle(shutil.copytree(default_bundle(), tmp_path_factory.mktemp("built") / "bundle"))
    target, sizes = find_target("rtx-sm80"), Sizes(frames=(1, 2, 4), prefill=16, cache=(64, 64, 64))
    build_engines(Job(bundle, target, tensorrt_rtx(), BuildOptions(stages=STAGES, sizes=sizes)))
    return open_engines(bundle, target.name)


def marked(engines: EngineSet, stage: str, folder: Path) -> tuple[Path, list[str]]:
    """Its graph with marks, and their names."""
    bundle = open_bundle(engines.bundle_folder)
    graph = Graph(bundle.path(bundle.manifest.graphs[engines.manifest.engines[stage].graph].file))
    file, names = write_marked(graph, blocks_of(graph), folder)
    return file, list(names.values())


@pytest.mark.parametrize("stage", STAGES)
def test_every_mark_is_an_output_of_the_engine(engines: EngineSet, stage: str, tmp_path: Path) -> None:
    file, marks = marked(engines, stage, tmp_path)
    data, contract = compile_marked(engines, stage, file)
    own = engines.manifest.engines[stage].contract
    more = contract.outputs[len(own.outputs) :]
    assert (contract.inputs, contract.outputs[: len(own.outputs)]) == (own.inputs, own.outputs)
    assert sorted(spec.name for spec in more) == marks
    assert len(marks) > 1
    assert {spec.dtype for spec in more} == {DType.FLOAT32}
    assert all(name.encode() in bytes(data) for name in marks)


def test_marks_are_refused_where_nobody_asked_for_them(engines: EngineSet, tmp_path: Path) -> None:
    """An engine that answers has the contract's outputs and no others."""
    file, _ = marked(engines, "content", tmp_path)
    entry, settings = engines.manifest.engines["content"], Settings(((8, 0),))
    with pytest.raises(BundleError, match="graph content and its contract differ in float32 of"):
        compiled(tensorrt_rtx(), "content", file, entry.contract, entry.profiles, settings)


@pytest.mark.parametrize("tf32", [False, True])
def test_a_set_tells_the_settings_that_it_was_built_with(
    engines: EngineSet, tmp_path: Path, tf32: bool
) -> None:
    bundle = open_bundle(shutil.copytree(engines.bundle_folder, tmp_path / "bundle"))
    options = BuildOptions(stages=("content",), tf32=tf32)
    job = Job(bundle, find_target("rtx-sm80"), tensorrt_rtx(), options)
    assert settings_of(build_engines(job).manifest) == job.settings


def test_another_version_than_the_sets_is_not_built_with(engines: EngineSet, tmp_path: Path) -> None:
    older = replace(engines, manifest=replace(engines.manifest, version="1.0.0.1"))
    with pytest.raises(DeviceError, match=r"was built by 1\.0\.0\.1; TensorRT-RTX .* is installed"):
        compile_marked(older, "content", marked(engines, "content", tmp_path)[0])
