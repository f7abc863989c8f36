"""What the paper's tables in miniature look like: a page, a JSON document and a picture, from rows that ran.

Takes answers, gives scores with 95 % intervals, a verdict a table on the order of its rows, and
`paper_tables.{md,json,png}`. Nothing on the page is written by hand after a run; knows nothing of training.

Note [Verdicts]
    All rows are asked the same questions, so two rows are compared question by question: the difference of
    their accuracies with a 95 % interval (normal, from the questions that one of them alone had right). An
    interval that holds 0 cannot tell. It speaks of these two trained models: one seed each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from llamavid.runtime.evaluate import Z_95, Score, Scores, score, scores

NAME = "paper_tables"
LABELS = {
    "both": "1+1, Q-Former",
    "content": "content token only",
    "context": "context token only",
    "1+4": "1+4",
    "1+16": "1+16",
    "bert": "1+1, BERT",
}


@dataclass(frozen=True)
class Row:
    """One trained model. seconds, loss: of each stage. records: its answers, as `llamavid eval` has them."""

    name: str
    tokens_per_frame: int
    seconds: dict[str, float]
    loss: dict[str, float]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """One of the paper's.

    Args:
        better: pairs of rows, (better, worse), as the paper orders them.
        figures: what the paper says of a row, in its words, where it was read in the paper itself.
    """

    number: int
    title: str
    rows: tuple[str, ...]
    better: tuple[tuple[str, str], ...]
    figures: Mapping[str, str] = field(default_factory=dict)


TABLES = (
    Table(
        6,
        "Context token and content token",
        ("content", "context", "both"),
        (("both", "content"), ("both", "context")),
    ),
    Table(
        7,
        "Number of content tokens",
        ("both", "1+4", "1+16"),
        (("1+4", "both"), ("1+16", "1+4"), ("1+16", "both")),
    ),
    Table(8, "Text decoder", ("bert", "both"), (("both", "bert"),)),
)
_CAVEATS = (
    "One seed a row: intervals are over questions, not over trainings, and take questions about one clip "
    "for independent. With another seed two rows may differ by less or more.",
    "The start is not the same distance from every row. Its encoder, Q-Former and context attention were "
    "pretrained together on pictures and questions (`tiny_sight`), as the paper starts from InstructBLIP's "
    "Q-Former; BERT and its projector are fresh here, where the paper's BERT had read text, but no pictures. "
    "Table 8 compares pretraining as much as architecture.",
    "The language model was pretrained on two rows a frame, one context and one content (`tiny_language`): "
    "rows with one token a frame, or with 5 or 17, ask it for a form that it has not read.",
    "BERT learns from stage 1 on, as in the published code; the Q-Former is frozen in stage 1, likewise.",
    "With one token a frame, nothing else changes: the other token is left out of the sequence, in training "
    "and in answering. No published configuration does this; Note [One token a frame] in "
    "`llamavid/train/ablation.py`.",
)


@dataclass(frozen=True)
class Verdict:
    """Of one pair: the accuracy of `better` less that of `worse`; Note [Verdicts]."""

    better: str
    worse: str
    difference: float
    low: float
    high: float

    @property
    def word(self) -> str:
        if self.low > 0:
            return "agrees"
        return "contradicts" if self.high < 0 else "cannot tell"


def verdict(better: Row, worse: Row) -> Verdict:
    """Raises `ValueError` when the two were not asked the same questions."""
    pairs = list(zip(better.records, worse.records, strict=True))
    if not pairs or any(one["id"] != other["id"] for one, other in pairs):
        raise ValueError(f"{better.name} and {worse.name} were asked different questions")
    gained = sum(one["right"] and not other["right"] for one, other in pairs)
    lost = sum(other["right"] and not one["right"] for one, other in pairs)
    mean = (gained - lost) / len(pairs)
    reach = Z_95 * sqrt(max(0.0, (gained + lost) / len(pairs) - mean**2) / len(pairs))
    return Verdict(better.name, worse.name, mean, mean - reach, mean + reach)


def sentence(table: Table, found: Sequence[Verdict]) -> str:
    """Whether our order is the paper's."""
    words = {one.word for one in found}
    if not found:
        whole = "it cannot be compared: rows are missing"
    elif len(found) < len(table.better) and "contradicts" not in words:
        whole = "rows are missing; of those that ran, the order " + _whole(words)
    else:
        whole = "our order " + _whole(words)
    told = "; ".join(
        f"{LABELS[one.better]} over {LABELS[one.worse]} {one.difference * 100:+.1f} points "
        f"({one.low * 100:+.1f} to {one.high * 100:+.1f}): {one.word}"
        for one in found
    )
    return f"Table {table.number}: {whole}{'. ' if told else '.'}{told}{'.' if told else ''}"


def _whole(words: set[str]) -> str:
    if "contradicts" in words:
        return "contradicts the paper's"
    if words == {"agrees"}:
        return "agrees with the paper's"
    if "agrees" in words:
        return "agrees with the paper's where it can be told apart, which is not everywhere"
    return "cannot be told from chance"


def publish(rows: Sequence[Row], settings: Mapping[str, Any], folder: Path) -> Path:
    """Writes the three files to `folder`; gives the page."""
    by_name = {row.name: row for row in rows}
    scored = {row.name: scores(row.records) for row in rows}
    found = {
        table.number: [
            verdict(by_name[better], by_name[worse])
            for better, worse in table.better
            if better in by_name and worse in by_name
        ]
        for table in TABLES
    }
    where = machine()
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "name": NAME,
        "command": _command(settings),
        "machine": where,
        "settings": dict(settings),
        "rows": {
            row.name: {
                "tokens_per_frame": row.tokens_per_frame,
                "seconds": row.seconds,
                "loss": row.loss,
                **asdict(scored[row.name]),
            }
            for row in rows
        },
        "most_frequent_answer": asdict(guessing(rows[0].records)),
        "tables": [
            {
                "number": table.number,
                "sentence": sentence(table, found[table.number]),
                "verdicts": [asdict(one) | {"verdict": one.word} for one in found[table.number]],
                "paper": dict(table.figures),
            }
            for table in TABLES
        ],
    }
    (folder / f"{NAME}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = _page(by_name, scored, found, settings, where)
    page = folder / f"{NAME}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plot(scored, guessing(rows[0].records), folder / f"{NAME}.png")
    return page


def guessing(records: Sequence[dict[str, Any]]) -> Score:
    """Who sees nothing and says the most frequent answer of each kind."""
    most: dict[str, str] = {}
    for kind in {record["kind"] for record in records}:
        said = Counter(record["expected"] for record in records if record["kind"] == kind)
        most[kind] = said.most_common(1)[0][0]
    return score([record["expected"] == most[record["kind"]] for record in records])


def _page(
    rows: Mapping[str, Row],
    scored: Mapping[str, Scores],
    found: Mapping[int, Sequence[Verdict]],
    settings: Mapping[str, Any],
    where: Mapping[str, str],
) -> list[str]:
    lines = [
        "# The paper in miniature: Tables 6, 7 and 8",
        "",
        f"`{_command(settings)}`",
        "",
        "Six tiny models, trained alike but for what the row says, asked held-out questions of the little "
        "world. Written by the command; a row that contradicts the paper stays as it is.",
        "",
        *(f"- {sentence(table, found[table.number])}" for table in TABLES),
        "",
        f"![Accuracy of every row]({NAME}.png)",
    ]
    guess = guessing(next(iter(rows.values())).records)
    for table in TABLES:
        lines += ["", f"## Table {table.number}: {table.title.lower()}", "", *_table(table, rows, scored)]
    lines += ["", f"The most frequent answer of each kind, without looking: {_cell(guess)}.", ""]
    if not any(table.figures for table in TABLES):
        lines += [
            "The paper's own figures are of a 7B model on other data sets. Its tables could not be read when "
            "this was written: none is quoted, and what is compared is the order of its rows, from memory: "
            "both tokens over either alone, more content tokens over fewer, Q-Former over BERT.",
            "",
        ]
    lines += ["## By kind", "", *_kinds(scored), "", "## How to read it", ""]
    lines += [f"- {text}" for text in _CAVEATS]
    lines += ["", "## How it was made", "", *_costs(rows), ""]
    lines += [f"- {name}: {value}" for name, value in {**settings, **where}.items()]
    return lines


def _table(table: Table, rows: Mapping[str, Row], scored: Mapping[str, Scores]) -> list[str]:
    paper = bool(table.figures)
    lines = ["| model | tokens a frame | right |" + (" the paper |" if paper else "")]
    lines.append("|---|---:|---:|" + ("---|" if paper else ""))
    for name in table.rows:
        if name in rows:
            cells = [LABELS[name], str(rows[name].tokens_per_frame), _cell(scored[name].total)]
        else:
            cells = [LABELS[name], "", "not run"]
        cells += [table.figures.get(name, "")] if paper else []
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _kinds(scored: Mapping[str, Scores]) -> list[str]:
    names = list(scored)
    kinds = list(dict.fromkeys(kind for one in scored.values() for kind in one.kinds))
    lines = ["| kind | " + " | ".join(LABELS[name] for name in names) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    for kind in kinds:
        cells = [_cell(scored[name].kinds[kind]) for name in names]
        count = scored[names[0]].kinds[kind].questions
        lines.append(f"| {kind} ({count}) | " + " | ".join(cells) + " |")
    return lines


def _costs(rows: Mapping[str, Row]) -> list[str]:
    lines = ["| model | stage 1 | stage 2 | last losses |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        losses = " and ".join(f"{loss:.3f}" for loss in row.loss.values())
        spent = " | ".join(f"{seconds:.0f} s" for seconds in row.seconds.values())
        lines.append(f"| {LABELS[name]} | {spent} | {losses} |")
    return lines


def _cell(found: Score) -> str:
    return f"{found.accuracy:.1%} ({found.low * 100:.1f} to {found.high * 100:.1f})"


def _command(settings: Mapping[str, Any]) -> str:
    told = " ".join(f"--{name} {settings[name]}" for name in ("steps1", "steps2", "questions", "seed"))
    return f"python -m benchmarks.paper_tables START WORLD HELDOUT -o build/tables {told}"


def _plot(scored: Mapping[str, Scores], guess: Score, file: Path) -> None:
    """A panel a table; bars with their 95 % intervals, and a line where guessing is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    widths = [len(table.rows) for table in TABLES]
    panels = figure.subplots(1, len(TABLES), sharey=True, gridspec_kw={"width_ratios": widths})
    for table, axes in zip(TABLES, panels, strict=True):
        names = [name for name in table.rows if name in scored]
        totals = [scored[name].total for name in names]
        heights = [100 * total.accuracy for total in totals]
        reach = [
            [100 * max(0.0, total.accuracy - total.low) for total in totals],
            [100 * max(0.0, total.high - total.accuracy) for total in totals],
        ]
        places = range(len(names))
        axes.bar(places, heights, yerr=reach, capsize=4, color="tab:blue", width=0.6)
        axes.axhline(100 * guess.accuracy, color="tab:gray", linestyle=":", linewidth=1)
        axes.set_xticks(places, [LABELS[name].replace(" token", "\ntoken") for name in names], fontsize=8)
        axes.set_title(f"Table {table.number}: {table.title.lower()}", fontsize=9)
    panels[0].set_ylabel("right, % (95 % interval)")
    figure.savefig(file, dpi=120)
