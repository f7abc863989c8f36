"""Random weights in the layout of a release, at any size, without a download.

    python -m llamavid.model.random_checkpoint --size tiny -o DIR

Takes a `Size`, gives a folder: `checkpoint/`, `eva_vit_g.pth`, `bert-base-uncased/` and
`image_processor/` (facts section 8). What it says means nothing; that it loads, exports, runs and how
fast it does so is what it is for. What goes into the files is in `random_weights`, `random_configs` and
`random_tokenizers`.
"""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from llamavid.errors import DeviceError, LlamaVidError, UsageError
from llamavid.model.random_configs import bert_config, checkpoint_config, preprocessor_config
from llamavid.model.random_tokenizers import write_bert_tokenizer, write_json, write_llama_tokenizer
from llamavid.model.random_weights import (
    SIZES,
    Parameter,
    Size,
    checkpoint_parameters,
    tower_file_parameters,
)

FileFormat = Literal["bin", "safetensors"]
WEIGHTS_STEM: dict[FileFormat, str] = {"bin": "pytorch_model", "safetensors": "model"}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SMALL_FILES_BYTES = 10_000_000  # tokenizers, indexes and file headers, rounded up


def write_random_checkpoint(
    folder: Path,
    size: Size,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    file_format: FileFormat = "bin",
    heavy_tails: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a whole checkpoint into `folder`, which is new or empty. Holds one shard in memory.

    It is written beside, as `folder.partial`, and renamed when complete. `heavy_tails` is for the study of
    ranges, see Note [Heavy tails] in `random_weights`. `progress` is called after every file of weights with
    the bytes written and the bytes in all. Returns `folder`, absolute.

    Raises:
        UsageError: the folder is in use, or a size cannot be.
        DeviceError: the disk has too little room, or fails.
        OSError: the folder cannot be made.
    """
    folder = folder.resolve()
    tower, model = tower_file_parameters(size), checkpoint_parameters(size)
    total = sum(parameter.nbytes(dtype) for parameter in [*tower, *model])
    check_room(folder, total + SMALL_FILES_BYTES)

    partial = new_partial_folder(folder)
    try:
        write_small_files(partial, size, dtype)
        shards = shards_by_name(model, size.shard_bytes, dtype, file_format)
        write_index(partial / "checkpoint", shards, dtype, file_format)
        written = 0
        for name, parameters in {"eva_vit_g.pth": tower, **shards}.items():
            drawn = {p.key: p.drawn(seed, dtype, heavy_tails=heavy_tails) for p in parameters}
            save(drawn, partial / name)
            written += sum(p.nbytes(dtype) for p in parameters)
            if progress:
                progress(written, total)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # renamed by now, if all went well
    return folder


def check_room(folder: Path, needed_bytes: int) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", expected="a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder.parent).free
    if free_bytes < needed_bytes:
        raise DeviceError(
            f"{folder.parent} has {free_bytes / 1e9:.2f} GB free",
            expected=f"{needed_bytes / 1e9:.2f} GB for this checkpoint",
            next_step="Make room, or choose another disk or a smaller size.",
        )


def new_partial_folder(folder: Path) -> Path:
    partial = folder.with_name(folder.name + ".partial")
    try:
        partial.mkdir()
    except FileExistsError:
        next_step = "Remove it, unless another run is still writing it."
        raise UsageError(f"{partial} is there from a run that did not finish", next_step=next_step) from None
    return partial


def shards_by_name(
    parameters: Iterable[Parameter], limit_bytes: int, dtype: torch.dtype, file_format: FileFormat
) -> dict[str, list[Parameter]]:
    """In order, as many to a file as fit `limit_bytes`; one that is larger alone has a file for itself."""
    shards: list[list[Parameter]] = []
    filled_bytes = limit_bytes
    for parameter in parameters:
        if filled_bytes + parameter.nbytes(dtype) > limit_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(parameter)
        filled_bytes += parameter.nbytes(dtype)
    stem = WEIGHTS_STEM[file_format]
    return {
        f"checkpoint/{stem}-{number:05d}-of-{len(shards):05d}.{file_format}": shard
        for number, shard in enumerate(shards, start=1)
    }


def write_index(
    folder: Path, shards: dict[str, list[Parameter]], dtype: torch.dtype, file_format: FileFormat
) -> None:
    total = sum(p.nbytes(dtype) for shard in shards.values() for p in shard)
    places = {p.key: Path(name).name for name, shard in shards.items() for p in shard}
    index: dict[str, object] = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / f"{WEIGHTS_STEM[file_format]}.{file_format}.index.json", index)


def save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        else:
            torch.save(tensors, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch: a RuntimeError of its C++
        reason = str(error).splitlines()[0]
        next_step = "Look at the room and the quota of the disk."
        raise DeviceError(
            f"{path.name} could not be written whole ({reason})", next_step=next_step
        ) from error


def write_small_files(folder: Path, size: Size, dtype: torch.dtype) -> None:
    """Folders, configs, tokenizers and preprocessing constants: all but the weights."""
    checkpoint, bert, processor = (
        folder / name for name in ("checkpoint", "bert-base-uncased", "image_processor")
    )
    for made in (checkpoint, bert, processor):
        made.mkdir()
    write_json(checkpoint / "config.json", checkpoint_config(size, dtype))
    write_llama_tokenizer(checkpoint, vocab_size=size.vocab)
    write_json(bert / "config.json", bert_config(size))
    write_bert_tokenizer(bert, vocab_size=size.text_vocab, leading_unused=size.text_leading_unused)
    write_json(processor / "preprocessor_config.json", preprocessor_config(size))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser().parse_args(arguments)
    try:
        size = replace(SIZES[options.size], **variant(options))
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(f"writing {size.name}", total=None)
            folder = write_random_checkpoint(
                options.output,
                size,
                seed=options.seed,
                dtype=DTYPES[options.dtype],
                file_format=options.format,
                heavy_tails=options.heavy_tails,
                progress=lambda written, total: bar.update(task, completed=written, total=total),
            )
    except LlamaVidError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {options.output} could not be written: {error}", file=sys.stderr)
        return 1
    print_summary(folder, size, options)
    return 0


def print_summary(folder: Path, size: Size, options: argparse.Namespace) -> None:
    parameters = [*tower_file_parameters(size), *checkpoint_parameters(size)]
    count = sum(math.prod(parameter.shape) for parameter in parameters)
    disk_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size.name}, {count:,} random {options.dtype} numbers, {disk_bytes:,} bytes.")
    print(f"Next: llamavid export {shlex.quote(str(folder / 'checkpoint'))} -o BUNDLE")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m llamavid.model.random_checkpoint",
        description="Write random weights in the layout of a LLaMA-VID release.",
    )
    made.add_argument("--size", choices=SIZES, required=True)
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="new or empty folder")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--dtype", choices=DTYPES, default="float16")
    made.add_argument("--format", choices=WEIGHTS_STEM, default="bin")
    made.add_argument("--heavy-tails", action="store_true", help="weights and norms with outliers")
    group = made.add_argument_group("variants (left out: as the 7b short-video release)")
    group.add_argument("--bert-type", metavar="KIND", help="qformer_pretrain, raw_bert_layer:K")
    group.add_argument("--compress-type", metavar="KIND", help="mean, grid:G, none")
    group.add_argument("--mm-projector-type", metavar="KIND", help="linear, mlpKx_gelu")
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="224, 336")
    group.add_argument("--kv-heads", type=int, metavar="N", help="fewer than heads: grouped-query attention")
    group.add_argument("--rope-factor", type=float, metavar="F", help="16 for the long-video model")
    group.add_argument("--text-image-width", type=int, metavar="W", help="adds vlm_att_bert_proj")
    group.add_argument("--tower-in-checkpoint", action="store_true", default=None)
    return made


def variant(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Size` that were given on the command line."""
    names = {field.name for field in fields(Size)} - {"name"}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    if options.compress_type == "none":
        given["compress_type"] = None
    return given


if __name__ == "__main__":
    sys.exit(main())
