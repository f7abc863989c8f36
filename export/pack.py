"""From a checkpoint to a bundle: write the graphs, compare them with PyTorch, sign, rename.

    export_bundle("llama-vid-7b", Path("bundle"), runner=...)

Nothing of a failed or interrupted export stays. Memory is that of the largest
tensor while graphs are written, and of one graph while they are compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

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
from llamavid.contract import (
    DType,
    GraphContract,
    content_contract,
    context_contract,
    language_contract,
    vision_contract,
)
from llamavid.errors import BundleError, UsageError
from llamavid.export.builder import OPSET_LANGUAGE, GraphBuilder
from llamavid.export.graphs import write_content, write_context, write_vision
from llamavid.export.language import write_language
from llamavid.export.layers import Array, Layers
from llamavid.export.precision import BLOCK_SIZES, FP16, FP32, Precision, int4_precision
from llamavid.export.verify import Runner, parity, require
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.streamed import embedding_chunks
from llamavid.prompt import find_template

OnProgress = Callable[[str, int, int | None], None]  # what, done, of how many if known

_FRAME_PRECISIONS = {"fp32": FP32, "fp16": FP16}
_BYTES_A_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int4": 0.625}


@dataclass(frozen=True)
class ExportOptions:
    """What the bundle is to be."""

    precision: str = "fp32"  # of the frame graphs: fp32 or fp16
    llm_precision: str = "fp32"  # fp32, fp16 or int4
    int4_block: int = 32
    template: str = "vicuna_v1"
    replace: bool = False  # an existing bundle

    def __post_init__(self) -> None:
        find_template(self.template)
        if self.precision not in _FRAME_PRECISIONS:
            raise UsageError(f"precision {self.precision!r}", expected=" or ".join(_FRAME_PRECISIONS))
        if self.llm_precision not in _BYTES_A_WEIGHT:
            raise UsageError(f"llm-precision {self.llm_precision!r}", expected=" or ".join(_BYTES_A_WEIGHT))
        if self.int4_block not in BLOCK_SIZES:
            raise UsageError(f"int4-block {self.int4_block}", expected=" or ".join(map(str, BLOCK_SIZES)))

    @property
    def frame(self) -> Precision:
        return _FRAME_PRECISIONS[self.precision]

    @property
    def embedding_dtype(self) -> DType:
        """Of the input table: float16, as published, unless all is float32."""
        return DType.FLOAT32 if self.llm_precision == "fp32" else DType.FLOAT16

    @property
    def language(self) -> Precision:
        if self.llm_precision == "int4":
            return int4_precision(self.int4_block)
        return _FRAME_PRECISIONS[self.llm_precision]


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    *,
    runner: Runner,
    options: ExportOptions | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
    on_row: Callable[[ParityRow], None] = lambda row: None,
) -> Manifest:
    """Makes the bundle.

    Args:
        runner: runs graphs for the comparison.
        on_row: called with each line of the table of errors as it is known.

    Raises:
        BundleError: the target exists, or there is not enough disk.
        ParityError: a graph differs from PyTorch by more than its tolerance; no bundle is written.
    """
    options = options or ExportOptions()
    with staged_folder(target, replace=options.replace) as stage:
        _check_disk(checkpoint, stage, options)
        graphs = _write_graphs(checkpoint, stage, options, on_progress)
        _write_tables(checkpoint, stage, options.embedding_dtype, on_progress)
        rows: list[ParityRow] = []
        for row in parity(
            checkpoint,
            stage,
            graphs,
            runner,
            int4_block=options.language.int4_block,
            on_step=lambda what: on_progress(f"compare {what}", 0, None),
        ):
            rows.append(row)
            on_row(row)
        require(rows)
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
                **{name: metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
            },
        )


def _write_graphs(
    checkpoint: Checkpoint, stage: Path, options: ExportOptions, on_progress: OnProgress
) -> dict[str, GraphEntry]:
    config, frame = checkpoint.config, options.frame
    plans = {
        "vision": (vision_contract(config, frame.compute), frame, "vision.", write_vision),
        "content": (content_contract(config, frame.compute), frame, "compressor.", write_content),
        "context": (context_contract(config, frame.compute), frame, "", write_context),
    }
    graphs = {}
    for index, (name, (contract, precision, prefix, write)) in enumerate(plans.items()):
        on_progress(f"write {name}", index, len(plans))
        with GraphBuilder(name, contract, stage) as g:
            write(Layers(g, _reader(checkpoint, prefix), precision), config)
            graphs[name] = _entry(g.save(), precision, contract)
    contract, layers = language_contract(config.language, options.language.compute), config.language.layers
    with GraphBuilder("llm", contract, stage, opset=OPSET_LANGUAGE) as g:
        write_language(
            Layers(g, _reader(checkpoint, "language."), options.language),
            config.language,
            on_layer=lambda i: on_progress("write llm", i + 1, layers),
        )
        graphs["llm"] = _entry(g.save(), options.language, contract)
    return graphs


def _entry(file: Path, precision: Precision, contract: GraphContract) -> GraphEntry:
    return GraphEntry(file.name, precision.name, contract)


def _reader(checkpoint: Checkpoint, prefix: str) -> Callable[[str], Array]:
    return lambda name: checkpoint.read(prefix + name).numpy()


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


def _check_disk(checkpoint: Checkpoint, stage: Path, options: ExportOptions) -> None:
    """An hour of writing should not end in a full disk."""
    need = 0.0
    for name, stored in checkpoint.tensors.items():
        kind = options.llm_precision if name.startswith("language.") else options.precision
        need += float(np.prod(stored.shape)) * _BYTES_A_WEIGHT[kind]
    free = shutil.disk_usage(stage).free
    if need * 1.02 > free:
        raise BundleError(
            f"the bundle needs {need / 1e9:.1f} GB and {stage.parent} has {free / 1e9:.1f} GB free",
            next_step="Free some, choose another -o, or a smaller --llm-precision.",
        )
