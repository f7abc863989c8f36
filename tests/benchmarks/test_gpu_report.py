"""The report of `make bench-gpu`: what counts, what is void, and a page that is made of the JSON alone."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.compiling import why_not_compiled
from benchmarks.gpu.errors import BOUNDS, relative
from benchmarks.gpu.musts import BATCH, PUBLISHED, musts
from benchmarks.gpu.page import page
from benchmarks.gpu.plot import draw
from benchmarks.gpu.report import Report, Row, Value
from llamavid.runtime.profile.figures import Figure

ROOT = Path(__file__).parent.parent.parent
MODULES = ("encoder", "content", "decoder", "context", "whole")


def row(name: str, batch: int, ms: dict[str, float], errors: dict[str, float] | None = None) -> Row:
    figures = {module: Figure(spent, spent, spent, 15) for module, spent in ms.items()}
    found = dict.fromkeys(MODULES, 1e-3) | (errors or {})
    return Row(name, "float16", batch, figures, found, BOUNDS["float16"])


PUBLISHED_MS = {"encoder": 6.0, "content": 0.1, "decoder": 4.0, "context": 0.1, "whole": 9.0}
OURS_MS = {"encoder": 1.2, "content": 0.001, "decoder": 0.09, "context": 0.01, "whole": 1.3}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    settings = {"matrix ceiling": 7e14, "encoder operations": 5.3e11}
    return Report(tmp_path / "gpu_card.json", {"GPU": "a card"}, settings, seconds=60)


def test_what_must_hold_is_read_off_the_rows(report: Report) -> None:
    report.add(row(PUBLISHED, 1, PUBLISHED_MS))
    report.add(row("ours, CUDA graphs", BATCH, OURS_MS))
    total, text, share = musts(report.document())
    assert total.found == pytest.approx(10.2 / 1.301)  # `whole` is no part of the sum
    assert text.found == pytest.approx(0.1)
    assert share.found == pytest.approx(5.3e11 / 1.2e-3 / 7e14)
    assert [must.verdict for must in (total, text, share)] == ["holds"] * 3
    assert "- matrix ceiling: 700 TFLOP/s\n- encoder operations: 530 GFLOP a frame" in page(report.document())


@pytest.mark.parametrize("error", [math.nan, math.inf, 0.3])
def test_a_fast_row_with_a_wrong_result_does_not_count(report: Report, error: float) -> None:
    report.add(row(PUBLISHED, 1, PUBLISHED_MS))
    report.add(row("ours, miscompiled", BATCH, dict.fromkeys(MODULES, 0.001), {"decoder": error}))
    assert report.has_void
    assert [must.found for must in musts(report.document())] == [None] * 3
    text = report.file.with_suffix(".md").read_text()
    assert "| ours, miscompiled | 32 | void, decoder: " in text
    stored = json.loads(report.file.read_text())["rows"][1]
    assert stored["void"].startswith("decoder: ")
    assert stored["ms_a_frame"]["encoder"]["median"] == 0.001  # kept, so that it can be looked into


def test_tokens_may_be_further_off_than_a_module_and_not_without_end(report: Report) -> None:
    bound = BOUNDS["float16"]
    report.add(row("ours, fine", 1, OURS_MS, {"whole": 2 * bound}))
    report.add(row("ours, not", 1, OURS_MS, {"whole": 4 * bound}))
    assert [found.void for found in report.rows] == ["", f"whole: error {4 * bound:g} over {3 * bound:g}"]


def test_the_picture_is_made_of_the_document(report: Report) -> None:
    pytest.importorskip("matplotlib")
    report.add(row(PUBLISHED, 1, PUBLISHED_MS))
    report.add(row("ours, CUDA graphs", BATCH, OURS_MS))
    draw(report.document(), report.file.with_suffix(".png"))
    assert report.file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_missed_line_is_told(report: Report) -> None:
    report.add(row(PUBLISHED, 1, PUBLISHED_MS))
    report.add(row("ours, CUDA graphs", BATCH, OURS_MS | {"decoder": 2.0}))
    text = report.file.with_suffix(".md").read_text()
    assert text.count("**missed**") == 2  # the total's ratio and the text-related part


def test_after_every_figure_the_page_and_the_json_are_whole(report: Report) -> None:
    report.add(Value("A group", "something", 1.5, "ms", 1.0, 2.0))
    report.skip("another", "out of memory")
    document = json.loads(report.file.read_text())
    assert document["values"][0]["what"] == "something"
    assert report.file.with_suffix(".md").read_text() == page(document) + "\n"
    assert "- another: out of memory" in page(document)


def test_no_memory_for_one_is_a_line_and_not_the_end(report: Report) -> None:
    with report.attempt("batch 64"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")
    assert report.skipped == [("batch 64", "out of memory")]
    assert not report.failed


def test_what_breaks_is_named_with_its_first_line_and_fails_the_run(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    with report.attempt("a graph"):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")
    assert report.skipped == [("a graph", "failed, RuntimeError: operation not permitted")]
    assert report.failed
    assert "when stream is capturing" in capsys.readouterr().err


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", {}, {}, seconds=0)
    assert not report.has_time("an hour")
    assert report.skipped[0][0] == "an hour"


def test_the_worst_frame_is_what_an_error_tells() -> None:
    expected = torch.ones(4, 3, 2)
    found = expected.clone()
    found[2] = 0
    assert relative(found, expected) == 1.0
    found[1, 0, 0] = math.inf
    assert math.isnan(relative(found, expected))


def test_without_a_c_compiler_nothing_is_compiled_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "triton", torch)  # whatever is found
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert why_not_compiled(torch.device("cuda")) == "no C compiler is installed, which Triton calls"
    assert why_not_compiled(torch.device("cpu")) == ""
    (tmp_path / "gcc").write_text("#!/bin/sh\n")
    (tmp_path / "gcc").chmod(0o755)
    assert why_not_compiled(torch.device("cuda")) == ""


WITHOUT = ["numpy", "transformers", "onnxruntime", "onnx", "av", "PIL", "matplotlib", "rich", "click"]
WITHOUT += ["tokenizers", "sentencepiece", "safetensors"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_torch_alone_is_enough_and_without_a_gpu_the_next_step_is_said() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({WITHOUT}))\n"
    code += "import torch; torch.cuda.is_available = lambda: False\n"
    code += "from benchmarks.gpu.__main__ import main; sys.exit(main([]))"
    done = python("-c", code)
    assert done.returncode == 1
    assert "sees no GPU. Without one, --device cpu --size tiny" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_stopped_leaves_its_figures_and_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--size", "tiny", "--no-compile"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "float16 product" in line:
                running.terminate()
                break
        running.stderr.read()
    assert running.returncode == 128 + signal.SIGTERM
    document = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert document["values"][0]["what"].startswith("float16 product")
    assert "the run was stopped before its end" in document["marks"]
    assert "**marked**: the run was stopped before its end" in next(tmp_path.glob("*.md")).read_text()
