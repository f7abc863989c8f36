"""Precisions: what each costs, in the tiny model's answers and against the published code's recordings.

Every bundle is exported and asked here, in one run. What is emulated is rounded as a GPU rounds, by
`llamavid.export.emulation`. Ranges for int8 come from a scan of clips of the training
split.

python -m llamavid.train.little_world --split heldout --seed 1 --clips 300 -o build/tiny/heldout
python -m llamavid.train.little_world --split train --seed 80 --clips 12 -o build/tiny/scanned
python -m benchmarks.precisions build/tiny/heldout build/tiny/scanned -o build/precisions
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from benchmarks.report import Line, publish
from llamavid.bundle import Bundle, open_bundle, staged_folder, write_manifest
from llamavid.embedded import HOME
from llamavid.export.emulation import EmulatedBuilder
from llamavid.export.frame_types import FrameTypes, write_frame_graphs
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.export.precision import BF16, FP16, Precision
from llamavid.export.verify import Runner, relative_errors
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.runtime.clip import first_pixels
from llamavid.runtime.evaluate import Outcome, evaluate
from llamavid.runtime.parity import run_graph, run_language
from llamavid.runtime.qa_layouts import DataSet, read_data_set
from llamavid.runtime.session import VideoSession

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
RUNNER = Runner(run_graph, run_language)

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """One way to export."""

    name: str
    options: ExportOptions
    scans: bool = False
    emulated: Precision | None = None  # of the frame graphs
    recorded: bool = False  # compared with the recordings too
    asked: bool = True


KINDS = (
    Kind("fp32", ExportOptions(), recorded=True),
    Kind("fp16", ExportOptions(precision="fp16", llm_precision="fp16"), recorded=True),
    Kind("fp16 emulated", ExportOptions(llm_precision="fp16"), emulated=FP16, recorded=True, asked=False),
    Kind("int8, language model fp32", ExportOptions(precision="int8"), scans=True),
    Kind("fp32, language model int4", ExportOptions(llm_precision="int4")),
    Kind("int8, language model int4", ExportOptions(precision="int8", llm_precision="int4"), scans=True),
    Kind("bf16 emulated", ExportOptions(), emulated=BF16, recorded=True, asked=False),
)


def main() -> None:
    settings = _parser().parse_args()
    questions = read_data_set(settings.heldout / "questions.json", limit=settings.limit)
    lines = [*_answers(questions, settings.scanned, settings.output), *_golden(settings.output)]
    command = "python -m benchmarks.precisions build/tiny/heldout build/tiny/scanned -o build/precisions"
    publish("precisions", "Precisions", command, lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What each precision costs.")
    parser.add_argument("heldout", type=Path, help="a little world: its questions are asked")
    parser.add_argument("scanned", type=Path, help="another one: its clips are scanned")
    parser.add_argument("-o", "--output", type=Path, required=True, help="bundles and answers; continued")
    parser.add_argument("--limit", type=int, help="the first so many questions")
    return parser


# 1) Answers


def _answers(questions: DataSet, scanned: Path, work: Path) -> Iterator[Line]:
    opened = open_checkpoint(HOME / "release" / "checkpoint")
    clips = sorted((scanned / "clips").iterdir())
    frames = first_pixels(clips, opened.config.preprocessing, frames=16)
    exact: list[bool] = []
    for kind in (kind for kind in KINDS if kind.asked):
        bundle = _exported(
            opened, work / "tiny" / kind.name.replace(", ", "-").replace(" ", "-"), kind, frames
        )
        right = [bool(record["right"]) for record in _asked(bundle, questions).records]
        exact = exact or right
        yield _line(kind, exact, right)


def _line(kind: Kind, exact: list[bool], right: list[bool]) -> Line:
    lost = sum(a and not b for a, b in zip(exact, right, strict=True))
    won = sum(b and not a for a, b in zip(exact, right, strict=True))
    points = 100 * (won - lost) / len(right)
    note = f"{points:+.2f} points from fp32: {lost} lost, {won} won" if kind is not KINDS[0] else ""
    return Line(f"answers of {len(right)}, {kind.name}", 100 * sum(right) / len(right), "% right", note)


def _exported(opened: Checkpoint, folder: Path, kind: Kind, frames: Pixels) -> Bundle:
    if not folder.exists():
        scanned = frames if kind.scans else None
        export_bundle(opened, folder, runner=RUNNER, options=kind.options, frames=scanned)
        if kind.emulated:
            _emulate(opened, folder, kind.emulated)
    return open_bundle(folder)


def _emulate(opened: Checkpoint, folder: Path, precision: Precision) -> None:
    """Puts emulated frame graphs into a bundle whose own are float32."""
    manifest = open_bundle(folder).manifest
    types = FrameTypes(replace(precision, name=f"{precision.name} emulated"))
    with staged_folder(folder, replace=True) as stage:
        for name in manifest.files:
            (stage / name).write_bytes((folder / name).read_bytes())
        graphs = write_frame_graphs(opened, stage, types, builder=EmulatedBuilder)
        write_manifest(
            stage,
            model=manifest.model,
            template=manifest.template,
            graphs=manifest.graphs | graphs,
            parity=manifest.parity,
            built_with=manifest.built_with,
        )


def _asked(bundle: Bundle, questions: DataSet) -> Outcome:
    with VideoSession(bundle) as session:
        return evaluate(session, questions, output=bundle.folder.with_suffix(".jsonl"))


# 2) Recordings


def _golden(work: Path) -> Iterator[Line]:
    """Norm of the difference over the norm, from what the published code computed in float32."""
    for kind in (kind for kind in KINDS if kind.recorded):
        for family in ("short-video", "long-video"):
            folder = work / family / kind.name.replace(", ", "-").replace(" ", "-")
            bundle = _exported(_recorded_checkpoint(family), folder, kind, np.empty(0, np.float32))
            for file in sorted((GOLDEN / family / "cases").glob("*.safetensors")):
                yield from _case(bundle, kind.name, file)


def _recorded_checkpoint(family: str) -> Checkpoint:
    short = GOLDEN / "short-video"
    return open_checkpoint(
        GOLDEN / family / "checkpoint",
        vision_tower=short / "eva_vit_g.pth",
        text_tokenizer=short / "bert-base-uncased",
        image_processor=short / "image_processor",
    )


def _case(bundle: Bundle, kind: str, file: Path) -> Iterator[Line]:
    recorded, graphs = load_file(file), bundle.manifest.graphs

    def run(graph: str, **inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        entry = graphs[graph]
        typed = {name: array.astype(entry.contract.spec(name).dtype.numpy) for name, array in inputs.items()}
        return next(iter(run_graph(bundle.folder, entry, typed).values())).astype(np.float32)

    features = recorded["vision_features"] if "pixels" in recorded else recorded["features"]
    if "pixels" in recorded:
        yield _error(f"{file.stem}, {kind}: features", features, run("vision", pixels=recorded["pixels"]))
    yield _error(
        f"{file.stem}, {kind}: content token",
        recorded["content_token"][: len(features)],
        run("content", features=features),
    )
    ids = recorded["text_decoder_input_ids"][:1][:, recorded["text_decoder_attention_mask"][0].astype(bool)]
    yield _error(
        f"{file.stem}, {kind}: context token",
        recorded["context_token"][: len(features)],
        run("context", features=features, question_ids=ids),
    )
    language = graphs["llm"].contract.spec("inputs_embeds").dtype.numpy
    found = run_language(
        bundle.folder,
        graphs["llm"],
        bundle.manifest.model.language,
        [recorded["inputs_embeds"].astype(language)],
    )
    yield _error(f"{file.stem}, {kind}: last logits", recorded["logits_last"], found)


def _error(what: str, expected: npt.NDArray[np.floating], found: npt.NDArray[np.floating]) -> Line:
    largest, norm = relative_errors(expected, found)
    return Line(what, norm, "", f"largest {largest:.2g} of the largest value")


if __name__ == "__main__":
    main()
