"""The page of all results, from recorded ones: every line that must hold, and what is missing by its name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.musts import Must, musts
from benchmarks.recorded import Result, read_results
from benchmarks.report import Line, skipped
from benchmarks.summary import BENCHMARKS, main, page

MACHINE = {"processor": "A processor, 2 cores"}
FRAME = "batch 1, a frame of 39 blocks"
PUBLISHED = "published computation (PyTorch eager float32, attention"
ENCODER = (
    Line(f"int8, {FRAME}", 800.0, "ms", "relative error 2.0e-02"),
    Line(f"{PUBLISHED} multiplied out), {FRAME}", 3000.0, "ms", "relative error 7.5e-07"),
    Line(f"{PUBLISHED} fused), {FRAME}", 2480.0, "ms", "relative error 7.5e-07"),
    Line(f"OpenVINO, our float32 file, {FRAME}", 2100.0, "ms", "relative error 9.3e-07"),
    Line(f"OpenVINO, our int8 file, {FRAME}", 760.0, "ms", "relative error 2.1e-02"),
    Line(f"OpenVINO, cruder, {FRAME}", 100.0, "ms", "relative error 3.0e-01"),
    Line("int8, batch 1, times as fast as OpenVINO, our int8 file", 0.93, "x"),
    Line(f"int8, batch 1, times as fast as {PUBLISHED} multiplied out)", 3.7, "x"),
    Line(f"int8, batch 1, times as fast as {PUBLISHED} fused)", 3.2, "x"),
)
LANGUAGE = (
    Line("prefill of 256, float32", 1200.0, "ms, 3 layers", "1.00 times llama.cpp Q4_0"),
    Line(
        "prefill of 256, int4 by 32", 1100.0, "ms, 3 layers", "1.08 times float32, 1.10 times llama.cpp Q4_0"
    ),
    Line(
        "prefill of 256, int4 by 128", 1000.0, "ms, 3 layers", "1.20 times float32, 1.21 times llama.cpp Q4_0"
    ),
    Line("prefill of 256, llama.cpp Q4_0", 1200.0, "ms, 3 layers", "1.00 times float32"),
    Line("a token at 7,200, int4 by 32", 80.0, "ms, 3 layers", "0.75 times llama.cpp Q4_0"),
    Line("a token at 7,200, int4 by 128, int8 cache", 10.0, "ms, 3 layers", "6.00 times llama.cpp Q4_0"),
    Line("a token at 7,200, llama.cpp Q4_0", 60.0, "ms, 3 layers"),
)
REWRITES = (
    Line(f"32 frames: {PUBLISHED} fused)", 1.0, "x", "140.0 ms a frame"),
    Line("32 frames: the plain graph, float32", 1.1, "x"),
    Line("32 frames: int8, every rewrite that pays", 4.5, "x", "31.0 ms a frame; must be 4"),
    Line("32 frames: int8, and the image's keys and values kept from an earlier question", 8.0, "x"),
    Line("1 frames: int8, every rewrite that pays", 9.0, "x"),
)
SECOND = (
    Line("whole depth, composed, anew: vision", 500.0, "s"),
    Line("whole depth, composed, anew: prefill", 50.0, "s", "14 times as measured"),
    Line("whole depth, composed, second: prefill", 50.0, "s", "14 times as measured"),
    Line("whole depth, composed: times sooner", 11.0, "x", "must be 5"),
)


def record(folder: Path, name: str, lines: tuple[Line, ...]) -> None:
    document = {
        "name": name,
        "title": f"About {name}",
        "command": f"python -m benchmarks.{name}",
        "machine": MACHINE,
        "lines": [line.__dict__ for line in lines],
    }
    (folder / f"{name}.json").write_text(json.dumps(document))


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(tmp_path, "int8_encoder", ENCODER)
    record(tmp_path, "int4_decode", LANGUAGE)
    record(tmp_path, "rewrites", REWRITES)
    record(tmp_path, "second_question", SECOND)
    return tmp_path


def must(folder: Path, what: str) -> Must:
    (found,) = [each for each in musts(read_results(folder)) if what in each.what]
    return found


@pytest.mark.parametrize(
    ("what", "found", "verdict"),
    [
        ("batch 1: times the published", 3.2, "held"),  # the faster of its forms, round by round
        ("text-related part", 4.5, "held"),
        ("second question", 11.0, "held"),
        ("prefill of 256", 1.1, "held"),  # in blocks as large as llama.cpp's
        ("a token at 7,200", 0.75, "**missed**"),
    ],
)
def test_each_line_that_must_hold_has_its_figure_and_whether_it_holds(
    recorded: Path, what: str, found: float, verdict: str
) -> None:
    judged = must(recorded, what)
    assert judged.found == pytest.approx(found)
    assert judged.verdict == verdict


def test_a_peer_that_is_faster_because_it_is_further_off_is_no_peer_of_equal_error(recorded: Path) -> None:
    judged = must(recorded, "batch 1: times OpenVINO's best")
    assert judged.found == pytest.approx(0.93)
    assert "our int8 file" in judged.note


def test_a_coarser_rounding_than_the_peer_s_is_told_and_not_counted(recorded: Path) -> None:
    assert must(recorded, "prefill of 256").note == "int4 by 32, blocks as Q4_0's; int4 by 128: 1.21"
    assert "int8 cache" not in must(recorded, "a token at 7,200").note  # llama.cpp's is float16


def test_two_questions_stand_side_by_side_stage_by_stage(recorded: Path) -> None:
    written = page(read_results(recorded))
    assert "| whole depth, composed | asking anew | second question |  |" in written
    assert "| encoder | 500 s |  |  |" in written
    assert "| prefill | 50 s | 50 s | 14 times as measured |" in written
    assert "| whole depth, composed: times sooner | 11 x | must be 5 |" in written


def test_a_result_that_is_not_there_is_named_and_holds_nothing(recorded: Path) -> None:
    (recorded / "rewrites.json").unlink()
    judged = must(recorded, "text-related part")
    assert (judged.found, judged.holds, judged.verdict) == (None, False, "not measured")
    assert judged.note == "results/rewrites.json is not there"
    assert "rewrites: results/rewrites.json is not there; `python -m benchmarks.rewrites` makes it" in page(
        read_results(recorded)
    )


def test_an_absent_peer_is_named_with_the_way_to_get_it(recorded: Path) -> None:
    """Skipped by the benchmark: its line stays, without a figure, and the page says which and why."""
    ours = tuple(replace(line, note="") for line in LANGUAGE if "llama.cpp" not in line.what)
    record(recorded, "int4_decode", (*ours, skipped("llama.cpp Q4_0", "llama-cpp-python or gguf")))
    judged = must(recorded, "prefill of 256")
    assert judged.found is None
    assert "skipped: llama.cpp Q4_0: llama-cpp-python or gguf is not installed" in judged.note
    written = page(read_results(recorded))
    assert "- int4_decode, llama.cpp Q4_0: llama-cpp-python or gguf is not installed" in written


def test_a_gpu_s_lines_are_judged_as_its_own_page_judges_them(recorded: Path) -> None:
    rows = [
        gpu_row("published, eager", 1, encoder=8.0, content=0.1, decoder=1.5, context=0.2),
        gpu_row("ours, batched", 32, encoder=1.0, content=0.01, decoder=0.2, context=0.02),
    ]
    document = {"name": "gpu", "machine": {"GPU": "Some GPU"}, "settings": {}, "rows": rows}
    (recorded / "gpu_some.json").write_text(json.dumps(document))
    total, text = must(recorded, "times less than published"), must(recorded, "text-related at batch 32, ms")
    assert total.found == pytest.approx(9.8 / 1.23)
    assert total.verdict == "held"
    assert text.found == pytest.approx(0.22)
    assert text.verdict == "**missed**"
    written = page(read_results(recorded))
    assert "| Some GPU: text-related at batch 32, ms a frame | 0.15 or less | 0.22 | **missed**" in written
    assert "`make bench-gpu`" in written


def gpu_row(variant: str, batch: int, **ms: float) -> dict[str, Any]:
    columns = {
        name: {"median": spent, "low": spent, "high": spent, "rounds": 9} for name, spent in ms.items()
    }
    return {
        "variant": variant,
        "precision": "float16",
        "batch": batch,
        "ms_a_frame": columns,
        "total": sum(ms.values()),
        "void": "",
    }


def test_the_page_and_its_pictures_are_made_of_the_records_alone(recorded: Path) -> None:
    main(recorded)
    written = (recorded / "README.md").read_text(encoding="utf-8")
    assert "| text-related part (decoder and context), batch 32" in written
    assert "`python -m benchmarks.second_question`" in written
    assert "[About int8_encoder](int8_encoder.md)" in written
    assert "A processor, 2 cores" in written
    pictures = re.findall(r"!\[.*?\]\((.+?\.png)\)", written)
    assert pictures == ["side_by_side.png", "second_question.png"]
    for name in pictures:
        with Image.open(recorded / name) as picture:
            assert picture.width > 1000
    main(recorded)
    assert (recorded / "README.md").read_text(encoding="utf-8") == written


def test_without_any_result_the_page_names_all_that_is_missing(tmp_path: Path) -> None:
    main(tmp_path)
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert all(f"results/{name}.json is not there" in written for name in BENCHMARKS)
    assert "held" not in written.split("## What must hold")[1].split("That the rewrites")[0]


def test_sides_are_told_from_what_they_did_in_either_order() -> None:
    result = Result("any", "", "", {}, (*ENCODER[:2], *LANGUAGE[:2]), {})
    groups = {what: list(sides) for what, sides in result.groups().items()}
    assert groups == {
        FRAME: ["int8", f"{PUBLISHED} multiplied out)"],
        "prefill of 256": ["float32", "int4 by 32"],
    }


@pytest.mark.parametrize("document", [[], 3, "text"])
def test_a_file_that_is_no_result_is_refused_by_its_name(tmp_path: Path, document: Any) -> None:
    (tmp_path / "odd.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"odd\.json is no result"):
        read_results(tmp_path)


def test_make_bench_runs_what_the_page_expects() -> None:
    recipe = Path("Makefile").read_text(encoding="utf-8").split("\nbench: setup\n")[1].split("\n\n")[0]
    listed = re.search(r"for what in (.*?); do", recipe, re.S)
    assert listed
    assert tuple(listed[1].replace("\\\n", " ").split()) == BENCHMARKS
    assert "benchmarks.summary" in recipe
