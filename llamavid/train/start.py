"""A checkpoint to start training from, made of the weights that the paper starts from.

    python -m llamavid.train.start --language vicuna-7b-v1.5 --vision-tower eva_vit_g.pth \\
        --text-decoder instruct_blip_vicuna7b_trimmed.pth --text-tokenizer bert-base-uncased \\
        --image-processor 224 -o start-7b

Gives a folder in the release layout (facts section 8): `checkpoint/`, `bert-base-uncased/`,
`image_processor/` and `training.json`, which says what it was made of. The tower stays where it is, and
`config.json` points to it. What is gathered is in `starting_weights`, what is fresh in `fresh_weights`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from llamavid.console import Progress, remark
from llamavid.errors import UsageError
from llamavid.model.checkpoint import open_checkpoint
from llamavid.model.names import release_name
from llamavid.model.random_checkpoint import SMALL_FILES_BYTES, check_room, new_partial_folder, save
from llamavid.model.random_tokenizers import write_json
from llamavid.train.outcome import RECORD, copy_text_tokenizer, write_preprocessing
from llamavid.train.parser import Parser, run_command
from llamavid.train.stages import STAGE1
from llamavid.train.start_sources import Kind, Sources
from llamavid.train.starting_weights import Start, starting_weights, value

OnProgress = Callable[[str, int, int], object]  # of what, how many of how many

_SHARD_BYTES = 2_000_000_000  # what is in memory at once, besides the tensor that is read
_SMALLEST_ITEM = 2  # bytes a number: half precision
_LANGUAGE_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
_TEXT_DECODERS = {"qformer": "qformer_pretrain", "raw": "raw_bert_layer:2"}  # 2 layers: Table 9


def write_start(
    folder: Path, sources: Sources, kind: Kind, *, seed: int = 0, on_progress: OnProgress = lambda *at: None
) -> Start:
    """Gathers, checks and writes a start; `folder` is new or empty, its `checkpoint` is for `train stage1`.

    Every weight keeps its stored dtype. It is written beside, as `folder.partial`, one shard in memory at a
    time, and renamed when it opens as a checkpoint.

    Raises:
        CheckpointError: as `starting_weights`.
        UsageError: so does `starting_weights`; or the folder is in use.
        DeviceError: the disk has too little room, or fails.
    """
    folder = folder.resolve()
    start = starting_weights(sources, kind, seed=seed)
    numbers = sum(math.prod(weight.shape) for weight in start.weights.values())
    check_room(folder, numbers * _SMALLEST_ITEM + SMALL_FILES_BYTES)
    partial = new_partial_folder(folder)
    try:
        _write_small_files(partial, folder, start, sources)
        _write_weights(partial / "checkpoint", start, on_progress)
        write_json(partial / RECORD, _record(start, sources, kind, seed))
        open_checkpoint(partial / "checkpoint")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # renamed by now, if all went well
    return start


def _write_small_files(partial: Path, folder: Path, start: Start, sources: Sources) -> None:
    """All but the weights."""
    checkpoint = partial / "checkpoint"
    checkpoint.mkdir()
    places = {
        "mm_vision_tower": os.path.relpath(sources.vision_tower.resolve(), folder / "checkpoint"),
        "image_processor": "./image_processor",
    }
    write_json(checkpoint / "config.json", {**start.settings, **places})
    for name in _LANGUAGE_FILES:
        if (sources.language / name).is_file():
            shutil.copyfile(sources.language / name, checkpoint / name)
    copy_text_tokenizer(sources.vocabulary, partial / "bert-base-uncased")
    write_preprocessing(start.config.preprocessing, partial / "image_processor")


def _write_weights(checkpoint: Path, start: Start, on_progress: OnProgress) -> None:
    """Shards and their index. How many there are is known at the end: then they get their names."""
    places: dict[str, int] = {}
    count = size = 0
    for shard in _shards(_released(start, on_progress)):
        count += 1
        save(shard, checkpoint / f"{count}.bin")
        places |= dict.fromkeys(shard, count)
        size += sum(tensor.nbytes for tensor in shard.values())
        del shard  # else it stays while the next one fills
    names = {number: f"pytorch_model-{number:05d}-of-{count:05d}.bin" for number in range(1, count + 1)}
    for number, name in names.items():
        (checkpoint / f"{number}.bin").rename(checkpoint / name)
    weight_map = {weight: names[number] for weight, number in places.items()}
    index: dict[str, object] = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(checkpoint / "pytorch_model.bin.index.json", index)


def _released(start: Start, on_progress: OnProgress) -> Iterator[tuple[str, Tensor]]:
    """The weights by their release names, each read when it is asked for."""
    for done, (name, weight) in enumerate(start.weights.items()):
        on_progress("writing", done, len(start.weights))
        yield release_name(name, projector_depth=start.config.projector_depth), value(weight).contiguous()


def _shards(weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """As many to a shard as fit; one that is larger alone has a shard for itself."""
    shard: dict[str, Tensor] = {}
    for name, tensor in weights:
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > _SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def _record(start: Start, sources: Sources, kind: Kind, seed: int) -> dict[str, object]:
    """What it was made of. With adapters it is what stage 1 leaves, and stage 2 starts from it."""
    places = {name: path if path is None else str(path) for name, path in asdict(sources).items()}
    made: dict[str, object] = {
        "sources": places,
        "kind": asdict(kind),
        "seed": seed,
        "fresh": list(start.fresh),
    }
    return {**made, "stage": STAGE1.name} if sources.adapters else made


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> None:
    sources, kind = _asked(options)
    with Progress(quiet=options.json) as progress:
        start = write_start(options.output, sources, kind, seed=options.seed, on_progress=progress.update)
    for name in start.unexpected:
        remark(f"unexpected tensor {name} is left out")
    checkpoint = options.output / "checkpoint"
    print(_document(checkpoint, start) if options.json else _summary(checkpoint, start, sources))


def _document(checkpoint: Path, start: Start) -> str:
    found: dict[str, Any] = {"checkpoint": str(checkpoint), "tensors": len(start.weights)}
    lists = {"fresh": start.fresh, "dropped": start.dropped, "unexpected": start.unexpected}
    return json.dumps(found | {name: list(names) for name, names in lists.items()})


def _summary(checkpoint: Path, start: Start, sources: Sources) -> str:
    stage = "stage2" if sources.adapters else "stage1"
    count, fresh, dropped = len(start.weights), len(start.fresh), len(start.dropped)
    place = shlex.quote(str(checkpoint))
    return (
        f"{checkpoint}: {count} tensors, {fresh} of them fresh; {dropped} known and not needed.\n"
        f"Next: llamavid train {stage} --set checkpoint={place} --set data=DATA.json --set output={stage}"
    )


def _asked(options: argparse.Namespace) -> tuple[Sources, Kind]:
    """Raises `UsageError` for a kind that cannot be."""
    text_decoder = _TEXT_DECODERS.get(options.bert_type, options.bert_type)
    if not re.fullmatch(r"qformer_pretrain|raw_bert_layer:[1-9]\d?", text_decoder):
        raise UsageError(f"--bert-type {options.bert_type!r}", expected="qformer, raw or raw_bert_layer:K")
    grids = {"none": None, "1": "mean"}
    if options.grid not in grids and not re.fullmatch(r"[1-9]\d?", options.grid):
        raise UsageError(f"--grid {options.grid!r}", expected="none, 1, or patches along a side such as 4")
    kind = Kind(
        bert_type=text_decoder,
        mm_projector_type=options.projector,
        compress_type=grids.get(options.grid, f"grid:{options.grid}"),
        queries=options.queries,
    )
    sources = Sources(
        language=options.language,
        vision_tower=options.vision_tower,
        text_tokenizer=options.text_tokenizer,
        image_processor=options.image_processor,
        text_decoder=options.text_decoder,
        adapters=options.adapters,
    )
    return sources, kind


def _parser() -> Parser:
    made = Parser(
        prog="python -m llamavid.train.start",
        description="Make a checkpoint to start training from, out of published weights.",
    )
    add = made.add_argument
    add("--language", type=Path, required=True, metavar="DIR", help="Vicuna, or another LLaMA")
    add("--vision-tower", type=Path, required=True, metavar="FILE", help="eva_vit_g.pth")
    add("--text-tokenizer", type=Path, required=True, metavar="DIR", help="bert-base-uncased")
    add("--image-processor", required=True, metavar="DIR", help="CLIP's constants, or an image size")
    add("--text-decoder", type=Path, metavar="FILE", help="InstructBLIP: instruct_blip_vicuna7b_trimmed.pth")
    add("--adapters", type=Path, metavar="FILE", help="mm_projector.bin of a stage 1, instead")
    add("--bert-type", default="qformer", metavar="KIND", help="qformer (default), raw, raw_bert_layer:K")
    add("--projector", default="mlp2x_gelu", metavar="KIND", help="mlp2x_gelu (default), linear, mlpKx_gelu")
    add("--grid", default="1", metavar="G", help="content tokens: 1 (default), G x G, or none: all")
    add("--queries", type=int, metavar="M", help="what the Q-Former must have: 32 in the paper")
    add("--seed", type=int, default=0, help="of the fresh weights")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="new or empty folder")
    add("--json", action="store_true", help="print one JSON document")
    return made


if __name__ == "__main__":
    sys.exit(main())
