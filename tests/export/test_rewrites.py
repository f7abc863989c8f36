"""Each exact rewrite, alone and with all others, computes what the plain graph computes, with less work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from llamavid.bundle import GraphEntry, open_bundle
from llamavid.calibrated import Calibration
from llamavid.cli import main
from llamavid.contract import DType
from llamavid.errors import UsageError
from llamavid.export.frame_types import GRAPH_PREFIX, FrameTypes, write_frame_graphs
from llamavid.export.precision import FP8, FP16, FP32, INT8, Precision, int4_precision
from llamavid.export.rewrites import (
    NONE,
    PAYING,
    Rewrite,
    Rewrites,
    applicable,
    parsed_rewrites,
)
from llamavid.export.type_plan import TypePlan
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.parity import relative_errors
from llamavid.runtime.parity import run_graph
from llamavid.scales import FORMAT_VERSION, GraphScales, Scales, Step

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]
WriteAndRun = Callable[..., Outputs]

EXACT = 2e-5  # of the norm: float32, summed in another order; 2e-6 was measured
FLOAT16 = 5e-3  # both sides are float16, rounded at other places; 1e-3 was measured

HALF_INT8 = replace(INT8, compute=DType.FLOAT16)  # as GPUs have it: Note [One product in int8]

KINDS: dict[str, dict[str, Any]] = {
    "Q-Former": {},
    "Q-Former of two layers, projected image rows": {"text_layers": 2, "text_image_width": 88},
    "Q-Former of one layer": {"text_layers": 1},
    "raw BERT": {"bert_type": "raw_bert_layer:2"},
}
SETS: dict[str, Rewrites] = {
    **{rewrite.value: frozenset({rewrite}) for rewrite in Rewrite},
    "all": PAYING,
    "what rounded products have": applicable(PAYING, INT8),
    "all but absorbed-image": PAYING - {Rewrite.ABSORBED_IMAGE},
}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("random") / "release"
    size = replace(TINY, vision_depth=2, layers=1, **KINDS[request.param])
    write_random_checkpoint(folder, size, seed=11)
    return open_checkpoint(folder / "checkpoint")


def written(checkpoint: Checkpoint, folder: Path, types: FrameTypes) -> dict[str, GraphEntry]:
    folder.mkdir()
    return write_frame_graphs(checkpoint, folder, types)


def outputs(checkpoint: Checkpoint, folder: Path, types: FrameTypes, *, frames: int = 3) -> Outputs:
    """Every output of the vision and context graphs, float32, on drawn inputs."""
    graphs, random = written(checkpoint, folder, types), np.random.default_rng(1)
    vision = checkpoint.config.vision
    pixels = random.normal(size=(frames, 3, vision.image_size, vision.image_size))
    features = random.normal(size=(frames, 1 + vision.patches, vision.width))

    def run(name: str, **inputs: Array) -> Outputs:
        entry = graphs[name]
        typed = {key: array.astype(entry.contract.spec(key).dtype.numpy) for key, array in inputs.items()}
        return {key: array.astype(np.float32) for key, array in run_graph(folder, entry, typed).items()}

    asked = np.array([[2, 20, 30, 40, 3]])
    return run("vision", pixels=pixels) | run("context", features=features, question_ids=asked)


def require_equal(found: Outputs, expected: Outputs, bound: float) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        assert relative_errors(array, found[name])[1] <= bound, name


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    folder = tmp_path_factory.mktemp("plain") / "graphs"
    return outputs(checkpoint, folder, FrameTypes(FP32, rewrites=NONE))


@pytest.mark.parametrize("rewrites", SETS)
def test_a_rewrite_changes_nothing(
    checkpoint: Checkpoint, plain: Outputs, tmp_path: Path, rewrites: str
) -> None:
    found = outputs(checkpoint, tmp_path / "graphs", FrameTypes(FP32, rewrites=SETS[rewrites]))
    require_equal(found, plain, EXACT)


@pytest.mark.parametrize("checkpoint", ["Q-Former"], indirect=True)
def test_one_frame_is_as_many(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What is computed once a question has one entry; so has all else then."""
    plain = outputs(checkpoint, tmp_path / "plain", FrameTypes(FP32, rewrites=NONE), frames=1)
    require_equal(outputs(checkpoint, tmp_path / "all", FrameTypes(FP32), frames=1), plain, EXACT)


def test_in_float16_they_round_at_other_places_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = outputs(checkpoint, tmp_path / "plain", FrameTypes(FP16, rewrites=NONE))
    require_equal(outputs(checkpoint, tmp_path / "all", FrameTypes(FP16)), plain, FLOAT16)


# Which products there are


def products(folder: Path) -> Counter[str]:
    """Weights of the context graph, by the module that they are named after."""
    graph = onnx.load(str(folder / "context.onnx"), load_external_data=False).graph
    return Counter(weight.name.removesuffix(".weight") for weight in graph.initializer)


@pytest.mark.parametrize("checkpoint", ["Q-Former"], indirect=True)
def test_what_the_plain_graph_multiplies_is_gone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    written(checkpoint, tmp_path / "plain", FrameTypes(FP32, rewrites=NONE))
    written(checkpoint, tmp_path / "all", FrameTypes(FP32))
    before, after = products(tmp_path / "plain"), products(tmp_path / "all")
    last = checkpoint.config.text_decoder.layers - 1
    for gone in (
        "compressor.key_projector",
        "text_decoder.layers.0.attention.key",
        "text_decoder.layers.0.cross_attention.value",
        f"text_decoder.layers.{last}.feed_forward.up",
    ):
        assert gone in before
        assert gone not in after


@pytest.mark.parametrize("checkpoint", ["Q-Former"], indirect=True)
def test_where_the_plan_widens_one_product_it_is_not_merged(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """float16 would lose it: Note [Range] of the type plan."""
    wide = "text_decoder.layers.1.attention.value", "compressor.key_projector"
    plans = {"context": TypePlan(wide_products=frozenset(wide))}
    types = FrameTypes(FP16, plans)
    written(checkpoint, tmp_path / "graphs", types)
    after = products(tmp_path / "graphs")
    assert after[wide[0]] == after[wide[1]] == 1
    assert "text_decoder.layers.0.attention.value" not in after


def calibration(checkpoint: Checkpoint, precision: Precision) -> Calibration:
    """A step for every module there is, equal where the input is."""
    assert precision.eight_bits
    modules = [name.removesuffix(".weight") for name in checkpoint.tensors if name.endswith(".weight")]
    step = Step(8.0, 8.0 / precision.eight_bits.largest)
    graphs = {
        graph: GraphScales(
            precision.name, {m.removeprefix(prefix): step for m in modules if m.startswith(prefix)}
        )
        for graph, prefix in GRAPH_PREFIX.items()
    }
    return Calibration(Scales(FORMAT_VERSION, "none", 64 * "0", 64 * "0", 1, "", graphs), {})


@pytest.mark.parametrize("precision", [HALF_INT8, FP8, int4_precision(32)], ids=lambda one: one.name)
def test_rounded_products_are_rounded_to_the_same_levels(
    checkpoint: Checkpoint, tmp_path: Path, precision: Precision
) -> None:
    """Whatever is one product has the columns and the scales of those that it is made of."""
    types = FrameTypes(
        precision, calibration=calibration(checkpoint, precision) if precision.eight_bits else None
    )
    written(checkpoint, tmp_path / "plain", replace(types, rewrites=NONE))
    written(checkpoint, tmp_path / "all", types)
    plain, found = (stored(tmp_path / name) for name in ("plain", "all"))
    merged = [name for name in found if "+" in name and not name.endswith(".bias")]
    assert any(name.endswith("key+value.weight") for name in merged)
    for name in merged:
        parts = [plain[part] for part in parts_of(name)]
        np.testing.assert_array_equal(found[name], np.concatenate(parts, axis=-1))


def stored(folder: Path) -> dict[str, Array]:
    """Every weight of the context graph; levels as float32."""
    graph = onnx.load(str(folder / "context.onnx")).graph
    return {weight.name: numpy_helper.to_array(weight).astype(np.float32) for weight in graph.initializer}


def parts_of(name: str) -> list[str]:
    """`a.query+key.weight` or `a.query+a.key.weight` -> `a.query.weight`, `a.key.weight`."""
    modules, leaf = name.split(".weight")
    first, *others = modules.split("+")
    owner = first.rpartition(".")[0]
    return [f"{one if '.' in one else f'{owner}.{one}'}.weight{leaf}" for one in (first, *others)]


def test_in_int8_they_change_less_than_int8_does(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A last bit may fall on the other side of a level; the format's own error is 2e-2."""
    types = FrameTypes(INT8, calibration=calibration(checkpoint, INT8))
    plain = outputs(checkpoint, tmp_path / "plain", replace(types, rewrites=NONE))
    require_equal(outputs(checkpoint, tmp_path / "all", types), plain, FLOAT16)


@pytest.mark.parametrize("checkpoint", ["Q-Former"], indirect=True)
def test_products_of_unequal_steps_stay_apart(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = calibration(checkpoint, INT8)
    other, kept = "text_decoder.layers.0.attention.key", "text_decoder.layers.1.attention.value"
    scales = found.scales.graphs["context"]
    scales.steps[other] = Step(4.0, 4.0 / 127)
    del scales.steps[kept]
    found.scales.graphs["context"] = replace(scales, kept=(kept,))
    written(checkpoint, tmp_path / "graphs", FrameTypes(HALF_INT8, calibration=found))
    after = products(tmp_path / "graphs")
    assert after[other] == after[kept] == 1
    assert "text_decoder.layers.2.attention.query" not in after


# How they are chosen


def test_the_command_line_takes_names(checkpoint: Checkpoint, tmp_path: Path) -> None:
    arguments = ["export", str(checkpoint.folder), "-o", str(tmp_path / "bundle")]
    result = CliRunner().invoke(main, [*arguments, "--rewrites", "last-words,folded-keys"])
    assert result.exit_code == 0, result.stderr
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.built_with["rewrites"] == "folded-keys,last-words"
    found = products(tmp_path / "bundle")
    assert "compressor.query_projector+key" in found
    assert "text_decoder.layers.0.attention.query" in found


def test_an_unknown_rewrite_is_refused_by_name() -> None:
    assert parsed_rewrites("none") == NONE
    assert parsed_rewrites("all") == PAYING
    with pytest.raises(UsageError, match=r"rewrite 'folded-key'; expected all, none, .*folded-keys"):
        parsed_rewrites("one-product,folded-key")
