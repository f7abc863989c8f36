"""The page about mutated files: by container, by mutation, what is said, and what took longest."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.report import RESULTS, machine

COMMAND = "python -m benchmarks.mutated_videos"
NAME = "mutated_videos"
Row = Mapping[str, Any]  # the fields of an `Outcome`


def publish(outcomes: Sequence[Row], *, seed: int, limits: Mapping[str, float]) -> None:
    """Prints the page and writes `results/mutated_videos.md` and `.json`."""
    where = machine()
    answers, refusals, failures = _counted(outcomes)
    said = [line for row in outcomes for line in row["said"]]
    text = [
        "# Mutated and truncated files through `ask`",
        "",
        f"`{COMMAND}`",
        "",
        f"{len(outcomes)} files, each through `llamavid ask FILE QUESTION --max-new-tokens 4 --json`",
        f"in a process of its own, on the embedded model: {answers} answers, {refusals} refusals in one",
        f"line, {failures} failures. Limits: {limits['seconds']:g} s, and {limits['bytes'] / 2**30:g} GiB",
        f"over all processes of the command. Mutations by seed {seed}.",
        "",
        *_grouped("container", "kind", outcomes),
        *_grouped("mutation", "mutation", outcomes),
        *_sentences("Refusals", [line for line in said if line.startswith("error: ")]),
        *_sentences("Remarks", [line for line in said if not line.startswith("error: ")]),
        *(f"- {key}: {value}" for key, value in where.items()),
        *(f"- **failed**: {row['number']}: {row['problems']}" for row in outcomes if row["problems"]),
    ]
    document = {
        "name": NAME,
        "command": COMMAND,
        "machine": where,
        "seed": seed,
        "limits": limits,
        "answers": answers,
        "refusals": refusals,
        "failures": failures,
        "slowest_seconds": max(row["seconds"] for row in outcomes),
        "largest_bytes": max(row["bytes_held"] for row in outcomes),
    }
    files = [{key: value for key, value in row.items() if key != "said"} for row in outcomes]
    lines = ",\n ".join(json.dumps(row) for row in files)  # a line a file
    body = json.dumps(document, indent=1)[:-2] + f',\n "files": [\n {lines}\n ]\n}}\n'
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{NAME}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (RESULTS / f"{NAME}.json").write_text(body, encoding="utf-8")
    print("\n".join(text))


def _counted(rows: Sequence[Row]) -> tuple[int, int, int]:
    """Answers, refusals, and what is neither."""
    sound = [row for row in rows if not row["problems"]]
    answers = sum(row["exit_code"] == 0 for row in sound)
    return answers, len(sound) - answers, len(rows) - len(sound)


def _grouped(title: str, field: str, outcomes: Sequence[Row]) -> list[str]:
    lines = [
        f"| {title} | files | answers | refusals | failures | slowest | most CPU | largest |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[str, list[Row]] = {}
    for row in outcomes:
        groups.setdefault(row[field], []).append(row)
    for name, rows in [*groups.items(), ("**all**", list(outcomes))]:
        seconds, cpu, held = (
            max(row[key] for row in rows) for key in ("seconds", "cpu_seconds", "bytes_held")
        )
        counts = " | ".join(map(str, (len(rows), *_counted(rows))))
        lines.append(f"| {name} | {counts} | {seconds:.1f} s | {cpu:.1f} s | {held / 2**20:,.0f} MiB |")
    return [*lines, ""]


def _sentences(title: str, lines: Sequence[str]) -> list[str]:
    """How often each was said; names and numbers left out."""
    numbers, names = re.compile(r"(?<![A-Za-z])[0-9]+(\.[0-9]+)?"), re.compile(r"'/[^']*'")
    counted = Counter(numbers.sub("N", names.sub("FILE", line)) for line in lines)
    return [f"{title}:", "", *(f"- {count} times: {line}" for line, count in counted.most_common()), ""]
