"""`llamavid calibrate`: from clips, or the sample, to scales that `llamavid export` takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from llamavid.calibrated import load_calibration
from llamavid.cli import main
from llamavid.embedded import embedded_checkpoint
from tests.clips import write_clip
from tests.conftest import GOLDEN

SHORT = GOLDEN / "short-video"
NEARBY = [
    *("--vision-tower", str(SHORT / "eva_vit_g.pth")),
    *("--text-tokenizer", str(SHORT / "bert-base-uncased")),
    *("--image-processor", str(SHORT / "image_processor")),
]
FEW = ["--clips", "2", "--frames", "1"]
RESULTS = ("scales.json", "scales.npz", "plan.json")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's threads, loaded long before the command, spin for each other when other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def calibrate(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, words)])


def refused(result: Result, code: int) -> str:
    """The one line that it ended with."""
    *before, line = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert line.startswith("error: ")
    assert not any("Traceback" in other for other in before)
    return line.removeprefix("error: ")


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of four seconds, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(3):
        write_clip(folder / f"{index}.mkv", frames=8 + index, fps=2)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The embedded model on its sample, with a report: the folder, and the document."""
    folder = tmp_path_factory.mktemp("sampled") / "calibrated"
    result = calibrate("-o", folder, *FEW, "--report", "--json")
    assert result.exit_code == 0, result.stderr
    return folder, json.loads(result.stdout)


# What it makes.


def test_the_embedded_model_is_calibrated_on_its_sample(sampled: tuple[Path, dict[str, Any]]) -> None:
    folder, document = sampled
    scales = load_calibration(folder / "scales.json").scales
    assert {name: graph.format for name, graph in scales.graphs.items()} == {
        **dict.fromkeys(("vision", "content", "context"), "int8"),
        "llm": "int4",
    }
    assert (scales.observer, scales.frames) == ("output", 2) == (document["observer"], document["frames"])
    assert document["clips"] == ["train-0-clip-0", "train-0-clip-1"]
    assert set(document["errors"]) == {"frame_tokens", "logits"}
    assert all(0 < error < 0.5 for error in document["errors"].values())
    assert {"scales.json", "scales.npz", "plan.json", "report.json", "report.html", "report.png"} <= {
        file.name for file in folder.iterdir()
    }


def test_the_next_command_that_it_names_makes_a_bundle_of_the_scales(
    sampled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    words = shlex.split(sampled[1]["next"].replace("BUNDLE", str(tmp_path / "bundle")))
    assert words[:3] == ["llamavid", "export", str(embedded_checkpoint())]
    exported = CliRunner().invoke(main, words[1:])
    assert exported.exit_code == 0, exported.stderr
    assert "int8" in exported.stdout
    assert "int4" in exported.stdout


def test_the_report_holds_every_module_and_loads_nothing_from_outside(
    sampled: tuple[Path, dict[str, Any]],
) -> None:
    folder, document = sampled
    report = json.loads((folder / "report.json").read_text())
    assert report == document["report"]
    scales = load_calibration(folder / "scales.json").scales
    names = {(module["graph"], module["module"]) for module in report["modules"]}
    assert names >= {(graph, name) for graph, found in scales.graphs.items() for name in found.steps}
    first = next(module for module in report["modules"] if module["module"] == "blocks.0.mlp.fc1")
    assert first["threshold"] == scales.graphs["vision"].steps["blocks.0.mlp.fc1"].largest
    assert first["observers"]["output"]["largest"] == first["threshold"]
    assert first["observers"]["absmax"]["largest"] == first["largest"]
    assert {one["format"] for one in report["speed"]} == {"int8", "int4"}
    page = (folder / "report.html").read_text()
    assert all(module["module"] in page for module in report["modules"])
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert not re.search(r"@import|url\(|https?://", page)
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_clip_that_cannot_be_read_is_told_and_another_takes_its_place(clips: Path, tmp_path: Path) -> None:
    few = ["--clips", "3", "--frames", "2", "--llm-format", "none"]
    result = calibrate(SHORT / "checkpoint", clips, "-o", tmp_path / "c", *few, *NEARBY, "--json")
    assert result.exit_code == 0, result.stderr
    assert sorted(json.loads(result.stdout)["clips"]) == ["0.mkv", "1.mkv", "2.mkv"]
    told = [line for line in result.stderr.splitlines() if line.startswith("left out: ")]
    assert len(told) == 1
    assert "broken.mp4" in told[0]
    assert set(json.loads(result.stdout)["graphs"]) == {"vision", "content", "context"}


def test_an_interrupted_run_is_continued_by_the_same_command_to_the_same_bytes_as_anywhere(
    sampled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    words = [sys.executable, "-m", "llamavid", "calibrate", "-o", str(folder), *FEW]
    running = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert running.stderr
    seen = []
    for line in running.stderr:
        seen.append(line)
        if any((folder / "observed").glob("*.npz")):  # something is there to go on from
            running.send_signal(signal.SIGINT)
            break
    rest = running.stderr.read().splitlines()
    assert running.wait() == 130, [*seen, *rest]
    assert rest[-1] == "error: interrupted. The same command goes on where it was"
    assert not any((folder / name).exists() for name in RESULTS)
    result = calibrate("-o", folder, *FEW)
    assert result.exit_code == 0, result.stderr
    assert results(folder) == results(sampled[0])
    assert result.stdout.splitlines()[-1].endswith(f"--scales {folder / 'scales.json'}")


def test_an_edited_plan_is_followed_and_what_it_keeps_is_not_rounded(
    sampled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = shutil.copytree(sampled[0], tmp_path / "edited")  # what was watched is not watched again
    plan = json.loads((folder / "plan.json").read_text())
    plan["graphs"]["vision"]["modules"]["blocks.0.mlp.fc2"]["format"] = "keep"
    (folder / "mine.json").write_text(json.dumps(plan))
    result = calibrate("-o", folder, *FEW, "--plan", folder / "mine.json", "--report", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["graphs"]["vision"]["kept"] == ["blocks.0.mlp.fc2"]
    assert document["errors"]["frame_tokens"] < sampled[1]["errors"]["frame_tokens"]
    (vision,) = (graph for graph in document["report"]["graphs"] if graph["graph"] == "vision")
    assert vision["kept"] == 1
    assert 0.5 < vision["share"] < 1


# What it refuses.


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["CHECKPOINT"], "no clips to watch"),
        (["CHECKPOINT", "CLIPS", "--sample"], "--sample with"),
        (["CHECKPOINT", "CLIPS"], "4 clips found; expected 16 to calibrate on. Name more clips, or pass"),
        (["CHECKPOINT", "CLIPS", "--clips", "4"], "3 clips found (1 more cannot be read); expected 4"),
        (["CHECKPOINT", "missing.mp4"], "missing.mp4 does not exist"),
        (["--format", "none", "--llm-format", "none"], "neither the frame graphs nor the language model"),
        (["--questions", "missing.txt"], "missing.txt cannot be read"),
        (["--target", "a1000"], "target 'a1000'"),
    ],
)  # fmt: skip
def test_what_was_typed_wrong_is_one_line_and_makes_nothing(
    clips: Path, tmp_path: Path, words: list[str], line: str
) -> None:
    named = {"CHECKPOINT": str(SHORT / "checkpoint"), "CLIPS": str(clips)}
    result = calibrate(*(named.get(word, word) for word in words), "-o", tmp_path / "c", *NEARBY)
    assert line in refused(result, 2)
    assert not (tmp_path / "c").exists()


def test_a_list_that_names_a_clip_that_is_gone_says_in_which_line(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{clips / '0.mkv'}\nlost.mkv\n")
    result = calibrate(SHORT / "checkpoint", tmp_path / "list.txt", "-o", tmp_path / "c", *NEARBY)
    assert "line 2 of" in refused(result, 2)


def test_a_format_that_the_target_lacks_is_refused_with_what_it_has(tmp_path: Path) -> None:
    result = calibrate("-o", tmp_path / "c", "--format", "fp8", "--target", "a100")
    assert refused(result, 1) == (
        "a100 has no fp8 (compute capability 8.0); expected int8 or int4. Choose one of these, or a target "
        "with fp8: h200, thor, rtx-sm89, rtx-sm120."
    )
    assert not (tmp_path / "c").exists()


def test_fp8_without_a_target_says_once_what_it_needs(tmp_path: Path) -> None:
    few = ["--clips", "1", "--frames", "1", "--llm-format", "none"]
    result = calibrate("-o", tmp_path / "c", "--format", "fp8", *few)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("compute capability 8.9") == 1


def test_another_calibration_s_folder_is_not_overwritten(sampled: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = sampled
    before = results(folder)
    result = calibrate("-o", folder, *FEW, "--seed", "1")
    assert "--replace" in refused(result, 1)
    assert results(folder) == before


def test_scales_of_another_checkpoint_are_refused_by_export(
    sampled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    words = ["export", SHORT / "checkpoint", "-o", tmp_path / "b", "--scales", sampled[0] / "scales.json"]
    result = CliRunner().invoke(main, [*map(str, words), *NEARBY])
    assert "the scales were made for checkpoint" in refused(result, 1)
