"""Keys and values in fewer bits than products: the same answers, in a half or a quarter of the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llamavid.bundle import GraphEntry
from llamavid.calibrated import GraphCalibration
from llamavid.contract import DType
from llamavid.errors import ScalesError, UsageError
from llamavid.export.language_graphs import write_language_graphs
from llamavid.export.pack import ExportOptions
from llamavid.export.precision import Precision, language_precision
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.parity import relative_errors
from llamavid.runtime.decoder import Decoder
from llamavid.runtime.executors import OnnxExecutor
from llamavid.scales import GraphScales

# 1e-3 and 1.5e-2 were measured.
BOUNDS = {"fp16": 5e-3, "int8": 5e-2}
HELD = {"fp16": np.float16, "int8": np.int8}
TOKENS = 20

Rows = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Grouped queries, linearly scaled RoPE."""
    folder = tmp_path_factory.mktemp("random") / "release"
    size = replace(TINY, kv_heads=2, rope_factor=16.0, vision_depth=1)
    return open_checkpoint(write_random_checkpoint(folder, size, seed=3, dtype=torch.float32) / "checkpoint")


@pytest.fixture(scope="module")
def rows(checkpoint: Checkpoint) -> Rows:
    shape = (1, TOKENS, checkpoint.config.language.hidden)
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """Its keys and values in float32, as its products."""
    return decoder(checkpoint, tmp_path_factory.mktemp("plain"), language_precision("fp32", int4_block=32))


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint, plain: Decoder, rows: Rows) -> GraphCalibration:
    """What the cache was seen to hold of those rows."""
    cache = plain.new_cache(TOKENS)
    plain.prefill(cache, rows)

    def ranges(kind: str) -> dict[str, float]:
        return {
            f"model.layers.{index}.self_attn": float(np.abs(cache.buffers[f"past.{index}.{kind}"]).max())
            for index in range(checkpoint.config.language.layers)
        }

    return GraphCalibration(GraphScales("int4", block=32, keys=ranges("key"), values=ranges("value")), {})


def decoder(
    checkpoint: Checkpoint, folder: Path, precision: Precision, calibration: GraphCalibration | None = None
) -> Decoder:
    entry = written(checkpoint, folder, precision, calibration)["llm"]
    executor = OnnxExecutor(folder / entry.file, entry.contract)
    return Decoder(executor, entry.contract, checkpoint.config.language)


def written(
    checkpoint: Checkpoint, folder: Path, precision: Precision, calibration: GraphCalibration | None = None
) -> dict[str, GraphEntry]:
    return write_language_graphs(checkpoint, folder, precision, calibration=calibration)


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_sequence_read_in_pieces_gives_the_logits_of_a_float32_cache(
    checkpoint: Checkpoint,
    plain: Decoder,
    calibration: GraphCalibration,
    rows: Rows,
    tmp_path: Path,
    kind: str,
) -> None:
    """ONNX Runtime 1.31, given float32 queries and a float16 cache, forgot what was read before."""
    precision = language_precision("fp32", int4_block=32, cache=kind)
    narrow = decoder(checkpoint, tmp_path, precision, calibration)
    caches = [one.new_cache(300) for one in (plain, narrow)]
    for piece in np.split(rows, (9, 16, 17, 18), axis=1):
        expected, found = (
            one.prefill(cache, piece) for one, cache in zip((plain, narrow), caches, strict=True)
        )
        assert relative_errors(expected, found)[1] <= BOUNDS[kind]
    assert {buffer.dtype for buffer in caches[1].buffers.values()} == {np.dtype(HELD[kind])}


@pytest.mark.parametrize("kind", BOUNDS)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_what_was_read_can_be_taken_back(
    checkpoint: Checkpoint,
    calibration: GraphCalibration,
    rows: Rows,
    tmp_path: Path,
    precision: str,
    kind: str,
) -> None:
    """To the bit: the rows that stay are not touched, and what lies behind them is not seen."""
    typed = language_precision(precision, int4_block=32, cache=kind)
    narrow = decoder(checkpoint, tmp_path, typed, calibration)
    cache = narrow.new_cache(TOKENS)
    narrow.prefill(cache, rows[:, :12])
    first = narrow.decode_one(cache, rows[0, 12])
    narrow.prefill(cache, rows[:, ::-1][:, :7])
    cache.length = 12
    np.testing.assert_array_equal(narrow.decode_one(cache, rows[0, 12]), first)


def test_tensorrt_s_graphs_are_as_they_were(
    checkpoint: Checkpoint, calibration: GraphCalibration, tmp_path: Path
) -> None:
    precision = language_precision("int4", int4_block=32, cache="int8")
    graphs = written(checkpoint, tmp_path, precision, calibration)
    held = {name: entry.contract.spec("past.0.key").dtype for name, entry in graphs.items()}
    assert held == {"llm": DType.INT8, "llm.static": DType.FLOAT16, "llm.primitive": DType.FLOAT16}


def test_a_layer_without_a_range_is_refused_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As of calibrations that were made before there were any."""
    before = GraphCalibration(GraphScales("int4", block=32, cache={"model.layers.0.self_attn": 1.0}), {})
    with pytest.raises(ScalesError, match=r"no range for the keys and values of model\.layers\.0\.self_attn"):
        written(checkpoint, tmp_path, language_precision("int4", int4_block=32, cache="int8"), before)


def test_int8_without_calibration_is_refused_with_what_needs_none() -> None:
    with pytest.raises(UsageError, match=r"kv-cache int8 without the ranges.*--kv-cache fp16"):
        ExportOptions(llm_precision="int4", kv_cache="int8")
    with pytest.raises(UsageError, match="kv-cache 'int4'; expected fp32 or fp16 or int8"):
        ExportOptions(kv_cache="int4")
