"""What a stage leaves: a checkpoint in the release layout that stands by itself, and how it was made.

OUTPUT/checkpoint/           config.json, shards, tokenizer; `mm_vision_tower` points to the tower used
OUTPUT/bert-base-uncased/    the text decoder's vocabulary
OUTPUT/image_processor/      the preprocessing constants
OUTPUT/training.json         which stage, from what, with which settings and versions
OUTPUT/loss.csv, loss.png    the curve
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from llamavid.config import LanguageConfig, Preprocessing
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.llamavid import LlamaVid
from llamavid.model.save import save_release
from llamavid.model.tensor_files import TensorFile, read_json
from llamavid.train.state import writing

RECORD, CURVE, PLOT = "training.json", "loss.csv", "loss.png"
_VERSIONS = ("llamavid", "torch", "transformers", "accelerate")


def write_outcome(
    output: Path, checkpoint: Checkpoint, model: LlamaVid, *, bert_type: str, record: Mapping[str, Any]
) -> None:
    """Writes everything above but the curve, which grew with the run; a whole `checkpoint/` or none.

    Args:
        checkpoint: what the run started from, with the context that it ends with.
        record: what `training.json` says besides versions.

    Raises:
        LlamaVidError: the disk is full or may not be written.
    """
    with writing(output / "checkpoint"):
        _write(output, checkpoint, model, bert_type, record)


def _write(
    output: Path, checkpoint: Checkpoint, model: LlamaVid, bert_type: str, record: Mapping[str, Any]
) -> None:
    tower = checkpoint.tensors["vision.cls_token"].source
    dtype = model.compressor.key_projector.weight.dtype
    settings = read_json(checkpoint.folder / "config.json", "a LLaMA-VID checkpoint folder") | {
        "bert_type": bert_type,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "image_processor": "./image_processor",
        **_rope(checkpoint.config.language),
    }
    if isinstance(tower, TensorFile):  # it stays where it is: no stage changes it
        settings["mm_vision_tower"] = os.path.relpath(tower.path, output / "checkpoint")
    partial, final = output / "checkpoint.partial", output / "checkpoint"
    shutil.rmtree(partial, ignore_errors=True)
    save_release(
        partial,
        _weights(model, with_tower=not isinstance(tower, TensorFile)),
        settings=settings,
        copied_from=checkpoint.folder,
        projector_depth=checkpoint.config.projector_depth,
        dtype=dtype,
    )
    copy_text_tokenizer(checkpoint.question_vocabulary, output / "bert-base-uncased")
    write_preprocessing(checkpoint.config.preprocessing, output / "image_processor")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    versions = {name: metadata.version(name) for name in _VERSIONS}
    text = json.dumps({**record, "checkpoint": str(checkpoint.folder), "versions": versions}, indent=1)
    (output / RECORD).write_text(text + "\n", encoding="utf-8")


def _rope(language: LanguageConfig) -> dict[str, object]:
    """How `config.json` says an extended context; nothing where there is none."""
    if language.rope_factor == 1:
        return {}
    return {
        "rope_theta": language.rope_theta,
        "rope_scaling": {"type": "linear", "factor": language.rope_factor},
        "rope_parameters": None,  # transformers 5 would read this spelling instead
        "max_token": language.context_length,
    }


def _weights(model: LlamaVid, *, with_tower: bool) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.named_parameters():
        if with_tower or not name.startswith("vision."):
            yield name, weight


def copy_text_tokenizer(vocabulary: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(vocabulary, folder / "vocab.txt")
    if (vocabulary.parent / "config.json").is_file():  # it tells the number of heads
        shutil.copyfile(vocabulary.parent / "config.json", folder / "config.json")


def write_preprocessing(constants: Preprocessing, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    fields = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": constants.image_size,
        "crop_size": constants.image_size,
        "do_resize": True,
        "do_center_crop": True,
        "do_normalize": True,
        "image_mean": list(constants.mean),
        "image_std": list(constants.std),
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def plot_curve(output: Path) -> Path:
    """Draws `loss.csv`: the loss and the learning rate by step."""
    from matplotlib.figure import Figure

    with (output / CURVE).open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, [float(row["loss"]) for row in rows], linewidth=0.8)
    axes.set(xlabel="step", ylabel="loss, mean over learned tokens", title=output.name)
    rates = axes.twinx()
    rates.plot(steps, [float(row["learning_rate"]) for row in rows], color="tab:gray", linestyle=":")
    rates.set_ylabel("learning rate")
    figure.savefig(output / PLOT, dpi=120)
    return output / PLOT
