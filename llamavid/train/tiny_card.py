"""The tiny model's card, out of the records of its making; no figure in it is typed by hand.

    python -m llamavid.train.tiny_card build/tiny -o llamavid/tiny

Reads of the working folder `start/pretraining.json`, `stage*/training.json`, the `--json` documents
`stage*.json` of `llamavid train`, and `heldout.json`, `blind.json`, `long.json` of `llamavid eval`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamavid.model.tensor_files import read_json
from llamavid.train.parser import Parser, run_command

_STAGES = ("stage1", "stage2", "stage3")
_EVALUATIONS = {
    "heldout": "Held-out clips of 4 to 60 seconds",
    "long": "Held-out clips of 2 to 4 minutes",
    "blind": "The same as the first, with grey frames in the place of the clips'",
}
_INTRODUCTION = """\
# The tiny LLaMA-VID

A whole LLaMA-VID, small: an EVA vision encoder, a Q-Former with context attention, two tokens a frame, a
LLaMA. It answers questions about clips of colored shapes that appear, move, change color and leave
(`llamavid/train/little_world.py`): color, shape, number, direction, order, when, yes or no. It was trained
from nothing on such clips and knows nothing else: about any other video its words mean nothing. It is there
to show that an installation works from the file to the answer, as the fixture of the tests, and as the
yardstick of quantization: an accuracy that can be lost.

`make tiny` makes it again. Licence: `LICENSE`, beside this card; every weight and every picture is our own.
"""
_HOW_RIGHT = """\
## How often it is right

`llamavid eval`, exact answers, with 95 % intervals. No scene was seen in training. Five pairs of color and
shape occur in held-out clips only; "unseen pairs" are the questions about one of them.
"""
_HOW_MADE = """\
## How it was made

Encoder and Q-Former (`tiny_sight.py`) and the language model (`tiny_language.py`) were pretrained side by
side, on one core each: the former on drawn pictures, to read colors, shapes and places off patches, off
their mean, and off what a question gathers; the latter on questions and captions with the truth about each
frame in the places of the frame tokens. Then the three stages, by `llamavid train`.

| | steps | minutes | loss of the last step |
|---|---|---|---|"""


def card(work: Path, package: Path) -> str:
    """The card's text. Raises `LlamaVidError` for a record that is missing or damaged."""
    return "\n".join([_INTRODUCTION, *_figures(work), *_making(work), *_sizes(package)]) + "\n"


def _figures(work: Path) -> Iterator[str]:
    yield _HOW_RIGHT
    for name, title in _EVALUATIONS.items():
        scores = _read(work / f"{name}.json")["scores"]
        yield f"{title}:\n\n| kind | questions | right | 95 % interval |\n|---|---|---|---|"
        rows = {**scores["kinds"], "**all**": scores["total"], "unseen pairs": scores["unseen_pairs"]}
        for kind, row in rows.items():
            if row:
                interval = f"{row['low']:.1%} to {row['high']:.1%}"
                yield f"| {kind} | {row['questions']} | {row['accuracy']:.1%} | {interval} |"
        yield ""


def _making(work: Path) -> Iterator[str]:
    pretraining = _read(work / "start" / "pretraining.json")
    stages = {name: _read(work / f"{name}.json") for name in _STAGES}
    yield _HOW_MADE
    for record in pretraining.values():
        yield _step_row(f"{record['name']}, pretraining", record)
    for name, record in stages.items():
        yield _step_row(name, record)
    yield ""
    for record in pretraining.values():
        read = ", ".join(f"{name} {value:.3f}" for name, value in record["accuracy"].items())
        yield f"After pretraining, on held-out scenes, {record['name']}: {read}."
    versions = ", ".join(f"{name} {version}" for name, version in stages["stage1"]["versions"].items())
    yield f"\nMachine: {_processor()}, {os.cpu_count()} cores."
    yield f"Python {platform.python_version()}, {versions}.\n"


def _step_row(name: str, record: Mapping[str, Any]) -> str:
    return f"| {name} | {record['steps']} | {record['seconds'] / 60:.0f} | {record['loss']:.4f} |"


def _sizes(package: Path) -> Iterator[str]:
    yield "## Sizes\n"
    for name in ("bundle", "release"):
        size = sum(file.stat().st_size for file in (package / name).rglob("*") if file.is_file())
        yield f"- `{name}/`: {size / 1e6:.1f} MB"


def _processor() -> str:
    """As the system names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, "a record of `make tiny`")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    file = options.output / "MODEL_CARD.md"
    file.write_text(card(options.work, options.output), encoding="utf-8")
    print(f"{file}. Next: llamavid demo")


def _parser() -> Parser:
    made = Parser(
        prog="python -m llamavid.train.tiny_card",
        description="Write the tiny model's card out of the records of its making.",
    )
    made.add_argument("work", type=Path, metavar="WORK", help="the working folder of `make tiny`")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the package's folder")
    return made


if __name__ == "__main__":
    sys.exit(main())
