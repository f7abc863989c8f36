"""One page of all that was measured, made of the recorded JSON alone.

python -m benchmarks.summary [FOLDER]

Writes FOLDER/README.md and its pictures; FOLDER is `benchmarks/results`. Nothing there is typed by hand: run
the benchmarks, then this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.musts import Must, musts
from benchmarks.recorded import Result, read_results
from benchmarks.report import RESULTS, Line
from benchmarks.summary_plots import draw_second_question, draw_sides
from llamavid.replacing import replacing
from llamavid.runtime.profile.document import STAGE_WORDS

# What `make bench` runs, in its order; a test holds both together.
BENCHMARKS = (
    "pixels",
    "assembly",
    "file_to_pixels",
    "second_question",
    "standing_question",
    "hour",
    "decode_length",
    "evidence",
    "int8_encoder",
    "int4_decode",
    "rewrites",
    "side_by_side",
    "tiny_end_to_end",
)
BESIDE = ("side_by_side", "int8_encoder", "int4_decode")  # with peers
SIDES_PICTURE, SECOND_PICTURE = "side_by_side.png", "second_question.png"
PAGE = "README.md"


def main(folder: Path) -> None:
    results = read_results(folder)
    draw_sides({name: results[name].groups() for name in BESIDE if name in results}, folder / SIDES_PICTURE)
    if "second_question" in results:
        draw_second_question(results["second_question"], folder / SECOND_PICTURE)
    with replacing(folder / PAGE) as beside:
        beside.write_text(page(results) + "\n", encoding="utf-8")
    print(f"{folder / PAGE} is written.")


def page(results: Mapping[str, Result]) -> str:
    """Markdown."""
    parts = [
        "# What was measured",
        "Made by `python -m benchmarks.summary` of the JSON files here, which `make bench` makes. Figures "
        "are medians. Both sides of a ratio are of one run, in turn, and it is the median of the rounds' "
        "ratios, which need not be one median by another. What was tried is in `../NOTES.md`.",
        _section("What must hold", _musts(musts(results), results)),
        "That the rewrites change nothing is held by tests: `pytest tests/export/test_rewrites.py`.",
        _section("Beside what a user would pick instead", _sides(results)),
        _section("A second question, stage by stage", _second(results.get("second_question"))),
        _section("The embedded model, end to end", _lines(results.get("tiny_end_to_end"))),
        _section("Not measured", _bullets(_missing(results))),
        _section("All results", _index(results)),
    ]
    return "\n\n".join(filter(None, parts))


def _musts(found: Sequence[Must], results: Mapping[str, Result]) -> str:
    rows = []
    for must in found:
        figure = "" if must.found is None else f"{must.found:.3g}"
        command = f"`{_command(must.benchmark, results)}`"
        rows.append((must.what, must.bound, figure, must.verdict, must.note, command))
    table = _table(("what", "must be", "found", "", "what was compared", "command"), rows)
    read = dict.fromkeys(must.benchmark for must in found if must.benchmark in results)
    machines = dict.fromkeys(_where(results[name]) for name in read)
    return f"{table}\n\nMeasured on: {' / '.join(machines)}." if machines else table


def _command(benchmark: str, results: Mapping[str, Result]) -> str:
    """As recorded; a GPU's documents name none."""
    if benchmark.startswith("gpu"):
        return "make bench-gpu"
    recorded = results[benchmark].command if benchmark in results else ""
    return recorded or f"python -m benchmarks.{benchmark}"


def _sides(results: Mapping[str, Result]) -> str:
    parts = [f"![ours beside the others]({SIDES_PICTURE})"]
    for name in BESIDE:
        if name not in results:
            continue
        parts.append(f"{results[name].title}: `{results[name].command}`")
        parts += [_group(what, sides) for what, sides in results[name].groups().items()]
    return "\n\n".join(parts)


def _group(what: str, sides: Mapping[str, Line]) -> str:
    rows = ((side, line.figure, line.note) for side, line in sides.items())
    return _table((what, "", ""), rows)


def _second(result: Result | None) -> str:
    """Sums and ratios first, then a table of stages for each model."""
    if result is None:
        return ""
    models = result.stages()
    if not models:
        return _lines(result)
    of_stages = {
        line.what
        for questions in models.values()
        for stages in questions.values()
        for line in stages.values()
    }
    parts = [
        f"![stages]({SECOND_PICTURE})",
        "What is composed was not measured: it is the cut model's stages, each times the factor beside it.",
        _lines(replace(result, lines=tuple(line for line in result.lines if line.what not in of_stages))),
        *(_stages(model, questions) for model, questions in models.items()),
    ]
    return "\n\n".join(parts)


def _stages(model: str, questions: Mapping[str, Mapping[str, Line]]) -> str:
    anew, second = (questions.get(each, {}) for each in ("anew", "second"))
    rows = []
    for stage in dict.fromkeys([*anew, *second]):
        lines = [each.get(stage) for each in (anew, second)]
        note = next(line.note for line in lines if line)
        rows.append((STAGE_WORDS.get(stage, stage), *(line.figure if line else "" for line in lines), note))
    return _table((model, "asking anew", "second question", ""), rows)


def _lines(result: Result | None) -> str:
    if result is None:
        return ""
    rows = ((line.what, line.figure, line.note) for line in result.lines)
    return f"{result.title}: `{result.command}`\n\n{_table(('what', 'figure', ''), rows)}"


def _missing(results: Mapping[str, Result]) -> Iterator[str]:
    for name in BENCHMARKS:
        if name not in results:
            yield f"{name}: results/{name}.json is not there; `python -m benchmarks.{name}` makes it"
    for result in results.values():
        yield from (f"{result.name}, {line.what}: {line.note}" for line in result.skipped)


def _index(results: Mapping[str, Result]) -> str:
    rows = (
        (f"[{each.title}]({each.name}.md)", f"`{each.command}`" if each.command else "", _where(each))
        for each in results.values()
    )
    return _table(("result", "command", "on"), rows)


def _where(result: Result) -> str:
    return result.machine.get("GPU") or result.machine.get("processor", "")


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(heads)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
