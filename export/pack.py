"""From a checkpoint to a bundle: write the graphs, compare them with PyTorch, sign, rename.

    export_bundle("llama-vid-7b", Path("bundle"), runner=...)

Nothing of a failed or interrupted export stays. Memory is that of the largest
tensor while graphs are written, and of one graph while they are compared.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid import __version__
from llamavid.bundle import (
    EMBEDDINGS,
    LANGUAGE_TOKENIZER,
    QUESTION_VOCABULARY,
    GraphEntry,
    Manifest,
    ParityRow,
    staged_folder,
    write_manifest,
)
from llamavid.calibrated import Calibration, save_calibration
from llamavid.contract import DType
from llamavid.errors import UsageError
from llamavid.export import activations
from llamavid.export.activations import Activations
from llamavid.export.disk import require_disk
from llamavid.export.emulation import EmulatedBuilder
from llamavid.export.frame_types import FrameTypes, frame_types, opened_calibration, write_frame_graphs
from llamavid.export.language_graphs import EMULATED, write_language_graphs
from llamavid.export.precision import (
    CACHES,
    COMPUTE,
    PRECISIONS,
    Precision,
    frame_precision,
    language_precision,
)
from llamavid.export.rewrites import PAYING, Rewrites, applicable, written_rewrites
from llamavid.export.scan import Pixels, scan_activations
from llamavid.export.verify import Keep, Runner, parity, require
from llamavid.formats.int4 import BLOCK_SIZES
from llamavid.golden import GOLDEN, write_golden
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.streamed import embedding_chunks
from llamavid.prompt import find_template
from llamavid.scales import load_scales

OnProgress = Callable[[str, int, int | None], None]  # what, done, of how many if known

_BYTES_A_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.1, "fp8": 1.1, "int4": 0.6875}
SCALES_FILE = "scales.json"


@dataclass(frozen=True)
class ExportOptions:
    """What the bundle is to be."""

    precision: str = "fp32"  # of the frame graphs: one of PRECISIONS
    compute: str | None = None  # around int8, fp8 or int4: fp32 or fp16; None lets the format choose
    scales: Path | None = None  # scales.json of `llamavid calibrate`
    llm_precision: str = "fp32"  # of the language model: one of PRECISIONS
    int4_block: int = 32
    kv_cache: str | None = None  # type of keys and values on a CPU: one of CACHES; None: that of products
    template: str = "vicuna_v1"
    replace: bool = False  # an existing bundle
    rewrites: Rewrites = PAYING  # exact ones, as far as the precision allows

    def __post_init__(self) -> None:
        find_template(self.template)
        for name, given, known in (
            ("precision", self.precision, PRECISIONS),
            ("llm-precision", self.llm_precision, PRECISIONS),
            ("compute", self.compute, (None, *COMPUTE)),
            ("int4-block", self.int4_block, BLOCK_SIZES),
            ("kv-cache", self.kv_cache, (None, *CACHES)),
        ):
            if given not in known:
                raise UsageError(f"{name} {given!r}", expected=" or ".join(str(one) for one in known if one))
        allowed = {"int8": ("fp32", "fp16"), "int4": ("fp32", "fp16"), "fp8": ("fp16",)}
        if self.compute and self.compute not in allowed.get(self.precision, ()):
            raise UsageError(
                f"compute {self.compute} with precision {self.precision}",
                expected="fp32 or fp16 around int8 and int4, fp16 around fp8",
                next_step="Leave --compute out.",
            )
        if self.int4_block != 32 and "int4" not in (self.precision, self.llm_precision):
            raise UsageError(
                f"int4-block {self.int4_block} where nothing is int4",
                expected="--precision or --llm-precision int4",
            )
        if self.scales and not self.frame.rounds and not self.language.rounds:
            raise UsageError(
                f"scales with precision {self.precision} and llm-precision {self.llm_precision}",
                expected="int8, fp8 or int4",
                next_step="Leave both out: the scales say what they are for.",
            )
        if self.kv_cache == "int8" and not (self.scales and self.language.rounds):
            raise UsageError(
                "kv-cache int8 without the ranges of keys and values",
                expected="--scales of a calibration in which the language model has a format",
                next_step="Make them: llamavid calibrate. Or choose --kv-cache fp16, which needs none.",
            )
        if self.language.eight_bits and not self.scales:
            raise UsageError(
                f"llm-precision {self.llm_precision} without scales",
                expected="the ranges of activations",
                next_step=f"Make them: llamavid calibrate --llm-format {self.llm_precision}.",
            )

    @property
    def frame(self) -> Precision:
        return frame_precision(self.precision, compute=self.compute, int4_block=self.int4_block)

    @property
    def embedding_dtype(self) -> DType:
        """Of the input table: float16, as published, unless all is float32."""
        return DType.FLOAT32 if self.llm_precision == "fp32" else DType.FLOAT16

    @property
    def language(self) -> Precision:
        return language_precision(self.llm_precision, int4_block=self.int4_block, cache=self.kv_cache)


def formats_of(scales: Path) -> dict[str, Any]:
    """The options that scales are for: `precision`, `llm_precision`, `int4_block`, those that they decide.

    Raises:
        ScalesError: they are damaged.
    """
    graphs = load_scales(scales).graphs
    found: dict[str, Any] = {}
    for option, graph in (("precision", "vision"), ("llm_precision", "llm")):
        if graph in graphs:
            found[option] = graphs[graph].format
            if graphs[graph].block:
                found["int4_block"] = graphs[graph].block
    return found


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    *,
    runner: Runner,
    options: ExportOptions | None = None,
    frames: Pixels | None = None,
    on_scan: Callable[[Activations], None] = lambda seen: None,
    on_progress: OnProgress = lambda what, done, total: None,
    on_row: Callable[[ParityRow], None] = lambda row: None,
) -> Manifest:
    """Makes the bundle.

    Args:
        runner: runs graphs for the comparison.
        frames: [n, 3, S, S] of real clips, to choose types and scales from; None: careful types.
        on_scan: called with what was seen in them.
        on_row: called with each line of the table of errors as it is known.

    Raises:
        BundleError: the target exists.
        DeviceError: there is not enough disk.
        UsageError: the precision needs scales, and there are neither scales nor frames.
        ScalesError: the scales are damaged, or of another checkpoint, format or block.
        ParityError: a graph differs from PyTorch by more than its tolerance; no bundle is written.
    """
    options = options or ExportOptions()
    with staged_folder(target, replace=options.replace) as stage:
        _require_room(checkpoint, stage, options)
        seen = _scan(checkpoint, stage, frames, on_progress, on_scan)
        types = frame_types(
            checkpoint, options.frame, scales=options.scales, seen=seen, rewrites=options.rewrites
        )
        language = _language_calibration(checkpoint, options)
        if used := language or types.calibration:
            save_calibration(used, stage / SCALES_FILE)
        graphs = write_frame_graphs(checkpoint, stage, types, on_file=on_progress)
        graphs |= write_language_graphs(
            checkpoint,
            stage,
            options.language,
            calibration=language.graph("llm") if language else None,
            rewrites=options.rewrites,
            on_layer=on_progress,
        )
        _write_tables(checkpoint, stage, options.embedding_dtype, on_progress)
        rows: list[ParityRow] = []
        golden: dict[str, npt.NDArray[Any]] = {}
        keep = golden.__setitem__
        for row in _parity(
            checkpoint, stage, graphs, runner, options, types, language, frames, on_progress, keep
        ):
            rows.append(row)
            on_row(row)
        require(rows)
        graphs = _without_emulated(stage, graphs)
        write_golden(stage / GOLDEN, golden)
        on_progress("hash", 0, None)
        return write_manifest(
            stage,
            model=checkpoint.config,
            template=options.template,
            graphs=graphs,
            parity=tuple(rows),
            built_with={
                "llamavid": __version__,
                "checkpoint": checkpoint.folder.name,
                "rewrites": written_rewrites(applicable(options.rewrites, types.precision)),
                **{name: metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
            },
        )


def _scan(
    checkpoint: Checkpoint,
    stage: Path,
    frames: Pixels | None,
    on_progress: OnProgress,
    on_scan: Callable[[Activations], None],
) -> Activations | None:
    if frames is None:
        return None
    seen = scan_activations(
        checkpoint, frames, on_block=lambda done, blocks: on_progress("scan activations", done, blocks)
    )
    (stage / activations.FILE).write_text(seen.to_json(), encoding="utf-8")
    on_scan(seen)
    return seen


def _language_calibration(checkpoint: Checkpoint, options: ExportOptions) -> Calibration | None:
    """None: the language model is not rounded, or to int4 without data, by scales that leave it out."""
    if not options.scales or not options.language.rounds:
        return None
    calibration = opened_calibration(checkpoint, options.scales)
    if options.language.eight_bits or "llm" in calibration.scales.graphs:
        calibration.scales.require_format("llm", options.llm_precision, block=options.language.int4_block)
        return calibration
    return None


def _parity(
    checkpoint: Checkpoint,
    stage: Path,
    graphs: dict[str, GraphEntry],
    runner: Runner,
    options: ExportOptions,
    types: FrameTypes,
    language: Calibration | None,
    frames: Pixels | None,
    on_progress: OnProgress,
    keep: Keep,
) -> Iterator[ParityRow]:
    """Rows of every graph; in half precision also as a GPU would compute them."""
    with tempfile.TemporaryDirectory(dir=stage) as folder:
        beside, emulated = Path(folder), None
        compared = {name: graphs.get(f"{name}{EMULATED}", entry) for name, entry in graphs.items()}
        if types.precision.compute is not DType.FLOAT32:
            entries = write_frame_graphs(checkpoint, beside, types, builder=EmulatedBuilder)
            emulated = {
                name: replace(entry, file=f"{beside.name}/{entry.file}") for name, entry in entries.items()
            }
        yield from parity(
            checkpoint,
            stage,
            compared,
            runner,
            language=options.language,
            types=types,
            calibration=language,
            frames=frames,
            emulated=emulated,
            on_step=lambda what: on_progress(f"compare {what}", 0, None),
            keep=keep,
        )


def _without_emulated(stage: Path, graphs: dict[str, GraphEntry]) -> dict[str, GraphEntry]:
    """The graphs of the bundle, those that were there to be compared removed."""
    for name in [name for name in graphs if name.endswith(EMULATED)]:
        (stage / graphs[name].file).unlink()
    return {name: entry for name, entry in graphs.items() if not name.endswith(EMULATED)}


def _write_tables(checkpoint: Checkpoint, stage: Path, dtype: DType, on_progress: OnProgress) -> None:
    """The embedding table and the tokenizers."""
    on_progress("write embeddings", 0, None)
    language = checkpoint.config.language
    shape = (language.vocab_size, language.hidden)
    table = np.lib.format.open_memmap(stage / EMBEDDINGS, mode="w+", dtype=dtype.numpy, shape=shape)
    row = 0
    for chunk in embedding_chunks(checkpoint):
        table[row : row + len(chunk)] = chunk.numpy()
        row += len(chunk)
    table.flush()
    del table
    shutil.copyfile(checkpoint.language_tokenizer, stage / LANGUAGE_TOKENIZER)
    shutil.copyfile(checkpoint.question_vocabulary, stage / QUESTION_VOCABULARY)


def _require_room(checkpoint: Checkpoint, stage: Path, options: ExportOptions) -> None:
    language = checkpoint.config.language
    need = float(language.vocab_size * language.hidden * options.embedding_dtype.itemsize)
    for name, stored in checkpoint.tensors.items():
        if name == "language.model.embed_tokens.weight":  # the table above
            continue
        kind = options.llm_precision if name.startswith("language.") else options.precision
        need += float(np.prod(stored.shape)) * _BYTES_A_WEIGHT[kind]
        if not name.startswith("language.") and options.frame.compute is not DType.FLOAT32:
            need += float(np.prod(stored.shape)) * 4  # emulated, until they are compared
    require_disk(
        stage.parent,
        int(need * 1.02),
        "the bundle",
        next_step="Make room, choose another -o, or a smaller --llm-precision.",
    )
