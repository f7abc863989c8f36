"""What `llamavid calibrate` found out reaches TensorRT-LLM's checkpoint under its names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llamavid.calibrated import Calibration
from llamavid.errors import ScalesError, UsageError
from llamavid.export.to_trtllm import export_trtllm
from llamavid.export.trtllm_options import TrtllmOptions
from llamavid.export.trtllm_scales import trtllm_scales
from llamavid.formats.matrices import rounded_matrix
from llamavid.model.checkpoint import Checkpoint
from llamavid.scales import FORMAT_VERSION, Divided, GraphScales, Migration, Scales, Step
from tests.export.test_to_trtllm import Change, checkpoint, logits, reference
from tests.export.trtllm_reader import read_trtllm

__all__ = ["checkpoint"]  # a fixture

LAYER = "model.layers.0"
QKV = tuple(f"{LAYER}.self_attn.{role}_proj" for role in "qkv")
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MODULES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def calibration(checkpoint: Checkpoint, format: str) -> Calibration:
    """One migration into layer 0's queries, keys and values, one from its values to its output."""
    hidden, random = checkpoint.config.language.hidden, np.random.default_rng(0)
    vectors = {
        name: random.uniform(0.3, 3, hidden).astype(np.float32) for name in ("norm", "value", "energy")
    }
    norm, value = f"{LAYER}.input_layernorm.weight", f"{LAYER}.self_attn.v_proj.weight"
    layers = range(checkpoint.config.language.layers)
    names = [f"model.layers.{index}.{module}" for index in layers for module in MODULES]
    scales = GraphScales(
        format,
        {} if format == "int4" else {name: Step(44.8, 0.1) for name in names},
        migrations=(
            Migration("norm", (Divided(norm),), QKV),
            Migration("value", (Divided(value),), (f"{LAYER}.self_attn.o_proj",)),
        ),
        block=64 if format == "int4" else None,
        importance=dict.fromkeys(QKV, "energy") if format == "int4" else {},
        cache={f"model.layers.{index}.self_attn": 25.4 for index in layers},
    )
    found = Scales(FORMAT_VERSION, "mse", 64 * "a", 64 * "b", 1, "", {"llm": scales})
    return Calibration(found, vectors)


def rounded(found: Calibration) -> Change:
    """What our own graphs make of the weights."""
    graph = found.graph("llm")
    assert graph

    def change(name: str, weight: Tensor) -> Tensor:
        if "_proj" not in name:
            return weight
        moved, importance = (
            graph.migrated(name, weight.numpy()),
            graph.importance(name.removesuffix(".weight")),
        )
        left = rounded_matrix(moved.T, "int4", block=64, importance=importance).T
        return torch.from_numpy(graph.restored(name, left).copy())

    return change


@pytest.mark.parametrize("ranks", [1, 2])
def test_migrations_are_awq_s_factors_and_cost_only_rounding(
    checkpoint: Checkpoint, tmp_path: Path, ranks: int
) -> None:
    options = TrtllmOptions(tensor_parallel=ranks, quantize="int4-awq", int4_group=64, kv_cache="int8")
    found = calibration(checkpoint, "int4")
    scales = trtllm_scales(found, checkpoint.config.language, options)
    export_trtllm(checkpoint, tmp_path / "v", options=options, scales=scales)
    rank = load_file(tmp_path / "v" / "rank0.safetensors")
    factor = rank["transformer.layers.0.attention.qkv.prequant_scaling_factor"].float().numpy()
    np.testing.assert_allclose(factor, 1 / found.vectors["norm"], rtol=1e-3)
    dense = rank["transformer.layers.0.attention.dense.prequant_scaling_factor"].float().numpy()
    np.testing.assert_allclose(dense, 1 / found.vectors["value"][: len(dense)], rtol=1e-3)
    assert rank["transformer.layers.1.mlp.fc.prequant_scaling_factor"].unique().tolist() == [1]
    cache = rank["transformer.layers.1.attention.kv_cache_scaling_factor"]
    assert cache.tolist() == pytest.approx([0.2])
    expected = logits(reference(checkpoint, change=rounded(found)))
    error = (logits(read_trtllm(tmp_path / "v")) - expected).norm() / expected.norm()
    assert error < 0.05  # float16 factors and scales; a factor on one side only gives more than 1


def test_fp8_has_migrations_in_its_weights_and_the_ranges_of_what_enters(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = TrtllmOptions(dtype="float32", tensor_parallel=2, quantize="fp8", target="h200")
    scales = trtllm_scales(calibration(checkpoint, "fp8"), checkpoint.config.language, options)
    export_trtllm(checkpoint, tmp_path / "v", options=options, scales=scales)
    rank = load_file(tmp_path / "v" / "rank1.safetensors")
    for name in ("attention.qkv", "attention.dense", "mlp.gate"):
        factor = rank[f"transformer.layers.1.{name}.activation_scaling_factor"]
        assert factor.tolist() == pytest.approx([0.1])
    plain = checkpoint.read(f"language.{LAYER}.input_layernorm.weight")
    assert not torch.equal(rank["transformer.layers.0.input_layernorm.weight"], plain)
    exact = logits(reference(checkpoint))
    error = (logits(read_trtllm(tmp_path / "v")) - exact).norm() / exact.norm()
    assert 0.005 < error < 0.1


def test_the_cache_s_range_is_that_of_the_values_which_the_engine_keeps(checkpoint: Checkpoint) -> None:
    """Of fp8's migrated weights, and of int4-awq's as the checkpoint has them."""
    language, layer = checkpoint.config.language, "transformer.layers.0.attention"
    for format, quantize, expected in (("fp8", "fp8", 3.0), ("int4", "int4-awq", 25.4)):
        found = calibration(checkpoint, format)
        graph = replace(found.scales.graphs["llm"], migrated_cache={f"{LAYER}.self_attn": 3.0})
        found.scales.graphs["llm"] = graph
        options = TrtllmOptions(quantize=quantize, int4_group=64, kv_cache="fp8", target="h200")
        if quantize == "fp8":
            options = replace(options, int4_group=128)
        ranges = trtllm_scales(found, language, options).kv_cache
        assert ranges[layer] == expected
        assert ranges["transformer.layers.1.attention"] == 25.4


def test_a_channel_that_is_always_0_has_no_importance_and_is_exported(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A dead unit of a feed-forward: the export took its 0 for a mistake in the shape."""
    found = calibration(checkpoint, "int4")
    found.vectors["energy"][3] = 0
    options = TrtllmOptions(quantize="int4-awq", int4_group=64)
    scales = trtllm_scales(found, checkpoint.config.language, options)
    assert export_trtllm(checkpoint, tmp_path / "v", options=options, scales=scales).size_bytes
    scales.prequant["transformer.layers.0.attention.qkv"][3] = 0
    with pytest.raises(
        UsageError, match=r"prequant scales of .*, the least is 0; expected \[\d+\], all above 0"
    ):
        export_trtllm(checkpoint, tmp_path / "w", options=options, scales=scales)


def test_scales_for_another_format_or_without_a_range_are_refused(checkpoint: Checkpoint) -> None:
    language, fp8 = checkpoint.config.language, TrtllmOptions(quantize="fp8", target="h100")
    with pytest.raises(ScalesError, match=r"have int4 for graph llm; expected fp8.*--llm-format fp8"):
        trtllm_scales(calibration(checkpoint, "int4"), language, fp8)
    found = calibration(checkpoint, "fp8")
    graph = found.scales.graphs["llm"]
    del graph.steps[f"{LAYER}.mlp.down_proj"]
    with pytest.raises(ScalesError, match=r"no range for what enters transformer\.layers\.0\.mlp\.proj"):
        trtllm_scales(found, language, fp8)
    bare = replace(found, scales=replace(found.scales, graphs={"llm": replace(graph, cache={})}))
    with pytest.raises(ScalesError, match="no ranges of the key-value cache"):
        trtllm_scales(bare, language, TrtllmOptions(kv_cache="int8"))
