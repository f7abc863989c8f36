"""What `make tiny` puts into the package beside the bundle: a sample clip with questions, and the checkpoint.

    python -m llamavid.train.tiny_package build/tiny/stage3 -o llamavid/tiny

`sample.mp4`, `sample.json`    a held-out clip, and questions about it with their answers
`release/`                     the stage's outcome in float16, in the release layout: `llamavid export
                               llamavid/tiny/release/checkpoint` makes the bundle, or one of another precision
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

from llamavid.model.llamavid import load_model
from llamavid.model.save import save_release
from llamavid.model.tensor_files import read_json
from llamavid.train.parser import Parser, run_command
from llamavid.train.world_casting import scenes
from llamavid.train.world_drawing import picture
from llamavid.train.world_files import CLIP_FPS, write_clip
from llamavid.train.world_questions import Kind, Question, questions
from llamavid.train.world_scene import Scene

SAMPLE_SEED = 2024
SAMPLE_KINDS = (Kind.COLOR, Kind.DIRECTION, Kind.ORDER)
SAMPLE_SECONDS = range(9, 16)


def write_sample(folder: Path) -> Path:
    """Writes the first held-out clip that can be asked about in all those ways, and the questions."""
    drawn = scenes("heldout", SAMPLE_SEED, 10**6)
    scene = next(scene for scene in drawn if scene.seconds in SAMPLE_SECONDS and len(_asked(scene)) == 3)
    clip = folder / "sample.mp4"
    write_clip(clip, (picture(scene, index / CLIP_FPS) for index in range(scene.seconds * CLIP_FPS)))
    items = [{"question": question.text, "answer": question.answer} for question in _asked(scene)]
    (folder / "sample.json").write_text(json.dumps(items, indent=1) + "\n", encoding="utf-8")
    return clip


def _asked(scene: Scene) -> list[Question]:
    return [question for question in questions(scene) if question.kind in SAMPLE_KINDS]


def write_release(stage: Path, folder: Path) -> Path:
    """Writes a stage's outcome with its encoder to `folder`, in float16; gives the checkpoint's folder."""
    made, checkpoint = stage / "checkpoint", folder / "checkpoint"
    model = load_model(made)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bert-base-uncased", "image_processor"):
        shutil.copytree(stage / name, folder / name)
    tower = {name: weight.half() for name, weight in model.vision.state_dict().items()}
    torch.save(tower, folder / "eva_vit_g.pth")
    weights = ((name, weight) for name, weight in model.named_parameters() if not name.startswith("vision."))
    settings = {"mm_vision_tower": "./eva_vit_g.pth", "torch_dtype": "float16"}
    save_release(
        checkpoint,
        weights,
        settings=read_json(made / "config.json", "a checkpoint folder") | settings,
        copied_from=made,
        projector_depth=model.config.projector_depth,
        dtype=torch.float16,
    )
    return checkpoint


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    write_sample(options.output)
    checkpoint = write_release(options.stage, options.output / "release")
    print(f"{checkpoint}. Next: llamavid export {checkpoint} -o {options.output / 'bundle'} --precision fp16")


def _parser() -> Parser:
    made = Parser(
        prog="python -m llamavid.train.tiny_package",
        description="Write the tiny model's checkpoint and a sample clip into the package.",
    )
    made.add_argument("stage", type=Path, metavar="STAGE", help="the output of the last stage")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    return made


if __name__ == "__main__":
    sys.exit(main())
