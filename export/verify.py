"""How far each exported graph is from the PyTorch model: run both on the same inputs, compare, judge.

The reference is float32 and streamed, so a model that does not fit in memory is
compared all the same. What runs the graphs is handed in: the very code that will
answer. An error over its tolerance is a `ParityError`; a bundle is not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from llamavid.bundle import GraphEntry, ParityRow
from llamavid.calibrated import Calibration
from llamavid.config import LanguageConfig, ModelConfig
from llamavid.contract import ATTENTION, RELEVANCE, DType, Lowering
from llamavid.elements import as_elements
from llamavid.errors import ParityError
from llamavid.export.frame_types import CAREFUL_FP32, FrameTypes
from llamavid.export.language import GRAPH
from llamavid.export.precision import FP32, Precision
from llamavid.export.rounding import rounding
from llamavid.model.checkpoint import Checkpoint
from llamavid.model.streamed import Around, streamed_features, streamed_logits, token_networks
from llamavid.parity import TOLERANCES, relative_errors, with_cache
from llamavid.tokenizer import QuestionTokenizer

Array = npt.NDArray[Any]
Keep = Callable[[str, Array], None]

QUESTION = "What happens in the video, and what color is it?"
_CHUNKS = (16, 7, 1, 1, 1, 1)  # prefill, a second chunk on a filled cache, decode steps
_FRAMES = 3  # all different, so that mixed rows show


class RunGraph(Protocol):
    def __call__(self, folder: Path, entry: GraphEntry, inputs: dict[str, Array]) -> dict[str, Array]: ...


class RunLanguage(Protocol):
    def __call__(
        self,
        folder: Path,
        entry: GraphEntry,
        language: LanguageConfig,
        chunks: Sequence[Array],
        *,
        exact_int4: bool = ...,
    ) -> Array: ...


@dataclass(frozen=True)
class Runner:
    """What runs graphs: the runtime's functions, handed in by the command line."""

    graph: RunGraph
    language: RunLanguage


def parity(
    checkpoint: Checkpoint,
    folder: Path,
    graphs: dict[str, GraphEntry],
    runner: Runner,
    *,
    language: Precision = FP32,
    types: FrameTypes = CAREFUL_FP32,
    calibration: Calibration | None = None,
    emulated: dict[str, GraphEntry] | None = None,
    frames: npt.NDArray[np.float32] | None = None,
    on_step: Callable[[str], None] = lambda what: None,
    keep: Keep = lambda name, array: None,
) -> Iterator[ParityRow]:
    """Compares graph after graph; yields every row, passed or not.

    Args:
        language: types of the language model.
        types: of the frame graphs.
        calibration: of the language model.
        emulated: the frame graphs by `EmulatedBuilder`, compared too.
        frames: pixels [n, 3, S, S] to compare with, the first three of them; None: drawn ones.
        keep: called with every input and every output of PyTorch, by the names of `llamavid.golden.Golden`.
    """
    pixels = sample_pixels(checkpoint.config) if frames is None else frames[:_FRAMES]
    on_step("vision: PyTorch")
    features = streamed_features(checkpoint, torch.from_numpy(pixels)).numpy()
    ids = QuestionTokenizer(checkpoint.question_vocabulary).ids(QUESTION)
    runs = {}
    if types.precision.compute is not DType.BFLOAT16:  # ONNX Runtime's CPU has no kernel for it
        on_step("frame graphs: exported")
        runs[""] = _run_frames(runner, folder, graphs, pixels, features, ids)
    if emulated:
        on_step("frame graphs: rounded as a GPU rounds")
        runs[", rounded as a GPU rounds"] = _run_frames(runner, folder, emulated, pixels, features, ids)
    exact = {"features": features} | _reference_tokens(checkpoint, features, ids)
    around = rounding(types.precision, types.calibration)
    for how, found in runs.items():
        yield from _frame_rows(graphs, exact, found, how, judged=around is None)
    rounded = exact
    if around:
        on_step(f"frame graphs: PyTorch rounded to {types.precision.name}")
        same = streamed_features(checkpoint, torch.from_numpy(pixels), around=around).numpy()
        rounded = {"features": same} | _reference_tokens(checkpoint, features, ids, around)
        for how, found in runs.items():
            yield from _frame_rows(graphs, rounded, found, how, rounded=True)
    outputs = {"encoded" if name == "features" else name: array for name, array in rounded.items()}
    for name, array in {"pixels": pixels, "features": features, "question_ids": ids, **outputs}.items():
        keep(name, array)
    around = rounding(language, calibration)
    yield from _language_rows(checkpoint, folder, graphs, runner, around, on_step, keep)


def require(rows: Sequence[ParityRow]) -> None:
    """Raises `ParityError` naming the worst row that failed."""
    failed = [row for row in rows if not row.passed]
    if failed:
        worst = max(failed, key=lambda row: np.nan_to_num(row.norm_error / (row.tolerance or 1), nan=np.inf))
        raise ParityError(
            f"graph {worst.graph} ({worst.precision}) differs from PyTorch by {worst.norm_error:.2g}",
            expected=f"at most {worst.tolerance:.2g} ({worst.reason})"
            if worst.tolerance is not None
            else "a number",
            next_step="No bundle was written. Export in fp32 to see whether the precision is the cause.",
        )


def sample_pixels(config: ModelConfig) -> npt.NDArray[np.float32]:
    """Three normalized pictures [3, 3, S, S] with edges, slopes and noise: a flat one would hide mistakes."""
    side, random = config.vision.image_size, np.random.default_rng(0)
    across = np.linspace(0, 6 * np.pi, side)
    waves = np.sin(across)[:, None] * np.cos(2 * across)[None]
    pictures = waves + (across[None, :, None] > across[None, None, :]) * random.normal(
        size=(3 * _FRAMES, 1, 1)
    )
    return (
        (pictures + 0.3 * random.normal(size=(3 * _FRAMES, side, side)))
        .reshape(_FRAMES, 3, side, side)
        .astype(np.float32)
    )


def _run(runner: Runner, folder: Path, entry: GraphEntry, **inputs: Array) -> dict[str, Array]:
    types = {spec.name: spec.dtype for spec in entry.contract.inputs}
    return runner.graph(
        folder, entry, {name: as_elements(array, types[name]) for name, array in inputs.items()}
    )


def _run_frames(
    runner: Runner, folder: Path, graphs: dict[str, GraphEntry], pixels: Array, features: Array, ids: Array
) -> dict[str, Array]:
    """Every output of the three, by its name; content and context of the reference's features."""
    found = _run(runner, folder, graphs["vision"], pixels=pixels)
    found |= _run(runner, folder, graphs["content"], features=features)
    return found | _run(runner, folder, graphs["context"], features=features, question_ids=ids)


def _frame_rows(
    graphs: dict[str, GraphEntry],
    reference: dict[str, Array],
    found: dict[str, Array],
    how: str,
    *,
    judged: bool = True,
    rounded: bool = False,
) -> Iterator[ParityRow]:
    """A row for every output of the three frame graphs."""
    for graph, output, told in (
        ("vision", "features", ""),
        ("content", "content_tokens", ""),
        ("context", "context_tokens", ""),
        ("context", ATTENTION, ATTENTION),
        ("context", RELEVANCE, RELEVANCE),
    ):
        precision = graphs[graph].precision
        rule = "cost" if not judged else f"{precision} frames" if rounded else None
        against = f"PyTorch rounded to {precision}" if rounded else "PyTorch float32"
        against += how
        yield _row(graphs, graph, reference[output], found[output], rule=rule, against=against, output=told)


@torch.inference_mode()
def _reference_tokens(
    checkpoint: Checkpoint, features: Array, ids: Array, around: Around = lambda part, module: nullcontext()
) -> dict[str, Array]:
    """Every output of the content and context graphs, by its name in the contract."""
    decoder, compressor = token_networks(checkpoint)
    rows = torch.from_numpy(features)
    with around("text_decoder", decoder), around("compressor", compressor):
        query = compressor.text_query(decoder(rows, torch.from_numpy(ids)))
        looked = compressor.context_attention(rows, query)
        return {
            "content_tokens": compressor.content_tokens(rows).numpy(),
            "context_tokens": compressor.context_tokens(rows, query).numpy(),
            ATTENTION: looked.attention.numpy(),
            RELEVANCE: looked.relevance.numpy(),
        }


def _language_rows(
    checkpoint: Checkpoint,
    folder: Path,
    graphs: dict[str, GraphEntry],
    runner: Runner,
    around: Around | None,
    on_step: Callable[[str], None],
    keep: Keep,
) -> Iterator[ParityRow]:
    language, sequence = checkpoint.config.language, _sample_sequence(checkpoint)
    ends = np.cumsum(_CHUNKS) - 1

    def found(name: str, *, exact_int4: bool = False) -> Array:
        """Logits [chunks, V] of one lowering."""
        on_step(f"{name}: exported graph" + (", exact activations" if exact_int4 else ""))
        entry = graphs[name]
        rows = as_elements(sequence, entry.contract.spec("inputs_embeds").dtype)
        chunks = np.split(rows, ends[:-1] + 1, axis=1)
        return runner.language(folder, entry, language, chunks, exact_int4=exact_int4)

    on_step("language model: PyTorch, layer by layer")
    exact = streamed_logits(checkpoint, [torch.from_numpy(sequence)])[0].numpy()[ends]
    keep("sequence", sequence)
    keep("chunks", np.asarray(_CHUNKS, np.int64))
    if around is None:
        keep("logits", exact)
        for name in GRAPH.values():
            yield _row(graphs, name, exact, found(name))
        return
    precision = graphs["llm"].precision
    same, is_int4 = f"PyTorch rounded to {precision}", precision == "int4"
    on_step(f"language model: PyTorch rounded to {precision}")
    rounded = streamed_logits(checkpoint, [torch.from_numpy(sequence)], around=around)[0].numpy()[ends]
    keep("logits", rounded)
    answered = found("llm")
    yield _row(graphs, "llm", rounded, answered, rule=f"{precision} run", against=same)
    if is_int4:
        yield _row(graphs, "llm", rounded, found("llm", exact_int4=True), rule="int4 weights", against=same)
    yield _row(graphs, "llm", exact, answered, rule="cost")
    for name in (GRAPH[Lowering.STATIC], GRAPH[Lowering.PRIMITIVE]):
        rule = "int4 in float16" if is_int4 else f"{precision} run"
        yield _row(graphs, name, rounded, found(name, exact_int4=is_int4), rule=rule, against=same)


def _sample_sequence(checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    """Embeddings [1, T, D] of words drawn from the model's own table."""
    table = checkpoint.read("language.model.embed_tokens.weight", torch.float32)
    picks = torch.from_numpy(np.random.default_rng(0).integers(3, len(table), sum(_CHUNKS)))
    return table[picks][None].numpy()


def _row(
    graphs: dict[str, GraphEntry],
    name: str,
    reference: Array,
    found: Array,
    *,
    rule: str | None = None,
    against: str = "PyTorch float32",
    output: str = "",
) -> ParityRow:
    """`output` is named where a graph has several."""
    entry = graphs[name]
    tolerance = TOLERANCES[rule or entry.precision]
    if name in GRAPH.values():
        tolerance = with_cache(tolerance, entry.contract)
    against += f" ({output})" if output else ""
    return ParityRow(name, entry.precision, against, *relative_errors(reference, found), *tolerance)
