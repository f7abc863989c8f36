"""A profile over engines: times by the GPU's events, decoder and context by its layers, ceilings by its own
products. The GPU is `tests.standin`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llamavid.cli import main
from llamavid.embedded import sample_clip
from llamavid.engines import STAMP
from tests.standin.engines import write_engines
from tests.standin.install import Machine

Make = Callable[..., Path]
QUICK = ("--frames", "4", "--seconds", "0.05", "--new-tokens", "3")


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a software GPU multiplies and copies within a test's time."""
    monkeypatch.setattr("llamavid.runtime.tensorrt.measured_ceilings._SIDE", 64)
    monkeypatch.setattr("llamavid.runtime.tensorrt.measured_ceilings._COPIED", 1 << 16)


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["profile", *(str(word) for word in words)])


def test_engines_are_profiled_and_nothing_of_the_gpu_is_left(late: Machine, stamped: Make) -> None:
    folder = stamped(late, frames=4)
    done = typed(folder, sample_clip(), *QUICK, "--batch", "1,4", "--on", "a100", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    alike = said["conditions"]["alike"]
    assert alike["on"] == "Software A100, TensorRT 11.4.0.12"
    assert alike["engines"] != alike["bundle"]
    assert set(said["conditions"]["parity"]) == {"vision", "content", "context", "llm.static"}
    assert [each["batch"] for each in said["frames"]] == [1, 4]
    assert said["frames"][0]["split"] == "TensorRT's time of each layer"
    assert all(figure["median"] > 0 for each in said["frames"] for figure in each["modules"].values())
    assert late.leaks() == {}


def test_ceilings_are_the_gpu_s_own_and_lack_what_it_does_not_build(
    late: Machine,
    stamped: Make,
) -> None:
    folder = stamped(late, frames=4)
    done = typed(folder, sample_clip(), *QUICK, "--batch", "1", "--json")
    assert done.exit_code == 0, done.output
    roofline = json.loads(done.stdout)["roofline"]
    assert set(roofline["products"]) == {"fp32", "fp16", "int8"}  # fp8 begins at compute capability 8.9
    assert roofline["bandwidth"] > 0


def test_layers_that_are_of_decoder_and_context_are_divided_by_operations(
    late: Machine,
    stamped: Make,
) -> None:
    """TensorRT fuses a whole transformer into one layer that names its first and last node."""
    folder = stamped(late, frames=4)
    late.counts.layers = ["{ForeignNode[layers.0/MatMul_1...context/MatMul_9]}"]
    done = typed(folder, sample_clip(), *QUICK, "--batch", "1", "--json")
    assert done.exit_code == 0, done.output
    (frames,) = json.loads(done.stdout)["frames"]
    assert "100% of it, fused of both, divided by operations" in frames["split"]
    assert 0 < frames["modules"]["context"]["median"] < frames["modules"]["decoder"]["median"]


def test_a_batch_that_the_engines_do_not_take_is_left_out_and_told(
    late: Machine,
    stamped: Make,
) -> None:
    folder = stamped(late, frames=4)
    done = typed(folder, sample_clip(), *QUICK, "--batch", "1,32", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [each["batch"] for each in said["frames"]] == [1]
    assert any("at most 4 frames a run: batch 32 is left out" in note for note in said["notes"])
    assert "at most 4 frames" in typed(folder, sample_clip(), *QUICK, "--batch", "32").stderr


def test_no_latency_is_told_of_engines_without_a_stamp(late: Machine, bundle: Path) -> None:
    write_engines(bundle)
    done = typed(bundle, sample_clip(), *QUICK, "--json")
    assert done.exit_code == 1
    assert done.stdout == ""
    line = done.stderr.strip().splitlines()[-1]
    assert "was never compared with the model here" in line
    assert "llamavid verify" in line
    assert late.counts.deserialized == 0


def test_the_allowed_cpu_is_what_the_profile_says_it_ran_on(late: Machine, stamped: Make) -> None:
    folder = stamped(late)
    (folder / "engines" / "a100" / STAMP).unlink()
    done = typed(folder, sample_clip(), *QUICK, "--batch", "1", "--json", "--allow-cpu")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["conditions"]["alike"]["on"] == "CPU, ONNX Runtime"
    assert done.stderr.count("The CPU answers, not an engine") == 1
    assert late.counts.deserialized == 0


def test_a_lean_runtime_has_no_products_to_measure_and_is_profiled_all_the_same(
    late: Machine, stamped: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no builder."""
    folder = stamped(late, frames=4)
    monkeypatch.delattr(sys.modules["tensorrt"], "Builder")
    done = typed(folder, sample_clip(), *QUICK, "--batch", "1")
    assert done.exit_code == 0, done.output
    assert "encoder" in done.stdout
