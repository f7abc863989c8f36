"""Precisions: what each costs, in the tiny model's answers and against the published code's recordings.

Every bundle is calibrated, exported and asked here, in one run. What is emulated is rounded as a GPU rounds,
by `llamavid.export.emulation`. Calibration sees scenes of the training split. "As seen" is the simplest
scheme: a range ends at the largest value that was seen, nothing is migrated, int4 is rounded to nearest.

The tiny model has no outlier channels, which are what breaks such schemes in large ones. "With outliers" is
the same model with some planted (`benchmarks.planted`): in float32 it computes what it did.

Differences are paired, question by question, with the 95 % interval of Agresti and Min (Statistics in
Medicine 24, 2005): half a question is added to those lost and to those won, so that none is no certainty.

python -m llamavid.train.little_world --split heldout --seed 1 --clips 300 -o build/tiny/heldout
python -m benchmarks.precisions build/tiny/heldout -o build/precisions
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from benchmarks.planted import with_outliers
from benchmarks.report import Line, publish
from llamavid.bundle import Bundle, open_bundle, staged_folder, write_manifest
from llamavid.calibration.calibrate import SCALES, calibrate
from llamavid.calibration.observers import Observer
from llamavid.calibration.options import CalibrationOptions
from llamavid.commands.calibration_clips import Choice, sample_material
from llamavid.embedded import HOME
from llamavid.export.emulation import EmulatedBuilder
from llamavid.export.frame_types import FrameTypes, write_frame_graphs
from llamavid.export.pack import ExportOptions, export_bundle
from llamavid.export.precision import BF16, FP16, Precision
from llamavid.export.verify import Runner, relative_errors
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.runtime.evaluate import Outcome, evaluate
from llamavid.runtime.parity import run_graph, run_language
from llamavid.runtime.qa_layouts import DataSet, read_data_set
from llamavid.runtime.session import VideoSession

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
RUNNER = Runner(run_graph, run_language)


@dataclass(frozen=True)
class Kind:
    """One way to export."""

    name: str
    precision: str = "fp32"
    llm_precision: str = "fp32"
    calibration: CalibrationOptions | None = None
    outliers: bool = False
    asked_all: bool = True  # or the first `SOME` questions: four minutes a kind for all of them
    emulated: Precision | None = None  # of the frame graphs
    recorded: bool = False  # compared with the recordings too
    asked: bool = True


OURS = CalibrationOptions()
AS_SEEN = CalibrationOptions(llm_format="none", observer=Observer.ABSOLUTE_MAXIMUM, migrate=False)
FP8 = CalibrationOptions(frame_format="fp8", llm_format="fp8")
EIGHT = CalibrationOptions(frame_format="none", llm_format="int8")
KINDS = (
    Kind("fp32", recorded=True),
    Kind("fp16", "fp16", "fp16", recorded=True),
    Kind("fp16 emulated", llm_precision="fp16", emulated=FP16, recorded=True, asked=False),
    Kind("int8 frames", "int8", calibration=OURS),
    Kind("int8 frames, as seen", "int8", calibration=AS_SEEN),
    Kind("int4 language model", llm_precision="int4", calibration=OURS),
    Kind("int4 language model, as seen", llm_precision="int4"),
    Kind("int8 frames and int4 language model", "int8", "int4", OURS),
    Kind("fp8 frames and language model", "fp8", "fp8", FP8, asked_all=False),
    Kind("int8 language model", llm_precision="int8", calibration=EIGHT, asked_all=False),
    Kind("with outliers, fp32", outliers=True, asked_all=False),
    Kind("with outliers, int8 frames", "int8", calibration=OURS, outliers=True, asked_all=False),
    Kind("with outliers, int8 frames, as seen", "int8", calibration=AS_SEEN, outliers=True, asked_all=False),
    Kind(
        "with outliers, int4 language model",
        llm_precision="int4",
        calibration=OURS,
        outliers=True,
        asked_all=False,
    ),
    Kind("with outliers, int4 language model, as seen", llm_precision="int4", outliers=True, asked_all=False),
    Kind("bf16 emulated", emulated=BF16, recorded=True, asked=False),
)
SOME = 600
CLIPS = Choice(clips=16, frames=4, seed=80, questions=None)
OUTLIER_FACTOR, OUTLIER_CHANNELS = 40.0, 3  # as large ViTs and LLaMAs have them: 20 to 60 times, a handful


def main() -> None:
    settings = _parser().parse_args()
    questions = read_data_set(settings.heldout / "questions.json", limit=settings.limit)
    lines = [*_answers(questions, settings.output), *_golden(settings.output)]
    command = "python -m benchmarks.precisions build/tiny/heldout -o build/precisions"
    publish("precisions", "Precisions", command, lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What each precision costs.")
    parser.add_argument("heldout", type=Path, help="a little world: its questions are asked")
    parser.add_argument("-o", "--output", type=Path, required=True, help="bundles and answers; continued")
    parser.add_argument("--limit", type=int, help="the first so many questions")
    return parser


# 1) Answers


def _answers(questions: DataSet, work: Path) -> Iterator[Line]:
    plain = open_checkpoint(HOME / "release" / "checkpoint")
    planted = with_outliers(plain, factor=OUTLIER_FACTOR, channels=OUTLIER_CHANNELS)
    exact: list[bool] = []
    for kind in (kind for kind in KINDS if kind.asked):
        bundle = _exported(planted if kind.outliers else plain, work / "tiny" / _slug(kind), kind)
        asked = questions if kind.asked_all else replace(questions, items=questions.items[:SOME])
        right = [bool(record["right"]) for record in _asked(bundle, asked).records]
        exact = exact or right
        yield _line(kind, exact[: len(right)], right)


def _line(kind: Kind, exact: list[bool], right: list[bool]) -> Line:
    lost = sum(a and not b for a, b in zip(exact, right, strict=True))
    won = sum(b and not a for a, b in zip(exact, right, strict=True))
    low, high = paired_interval(lost, won, len(right))
    points = 100 * (won - lost) / len(right)
    note = f"{points:+.2f} points from fp32 ({100 * low:+.2f} to {100 * high:+.2f}): {lost} lost, {won} won"
    line = Line(f"answers of {len(right)}, {kind.name}", 100 * sum(right) / len(right), "% right", note)
    return replace(line, note="") if kind is KINDS[0] else line


def paired_interval(lost: int, won: int, asked: int) -> tuple[float, float]:
    """95 % interval of the difference of two proportions of the same `asked` questions."""
    pairs = asked + 2
    difference = (won - lost) / pairs
    spread = 1.96 * math.sqrt((lost + won + 1) / pairs**2 - (won - lost) ** 2 / pairs**3)
    return difference - spread, difference + spread


def _slug(kind: Kind) -> str:
    return kind.name.replace(", ", "-").replace(" ", "-")


def _exported(opened: Checkpoint, folder: Path, kind: Kind) -> Bundle:
    if not folder.exists():
        scales = None
        if kind.calibration:
            calibrated = folder.with_name(f"{folder.name}-calibrated")
            material = sample_material(CLIPS, opened.config.preprocessing)
            calibrate(opened, material, calibrated, kind.calibration)
            scales = calibrated / SCALES
        calibrated_int4 = scales and "int4" in (kind.precision, kind.llm_precision)
        options = ExportOptions(
            precision=kind.precision,
            llm_precision=kind.llm_precision,
            int4_block=OURS.int4_block if calibrated_int4 else 32,
            scales=scales,
        )
        export_bundle(opened, folder, runner=RUNNER, options=options)
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
            bundle = _exported(_recorded_checkpoint(family), work / family / _slug(kind), kind)
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
