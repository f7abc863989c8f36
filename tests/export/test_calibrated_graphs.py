"""What scales.json decides is in the graphs: migrations, what is kept, clipping; no more than rounding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from llamavid.bundle import GraphEntry, open_bundle
from llamavid.calibrated import Calibration, load_calibration, save_calibration
from llamavid.cli import main
from llamavid.contract import DType
from llamavid.errors import ParityError, ScalesError, UsageError
from llamavid.export.frame_types import FrameTypes, opened_calibration, write_frame_graphs
from llamavid.export.pack import SCALES_FILE, ExportOptions, export_bundle
from llamavid.export.precision import FP32, INT8, Precision, frame_precision
from llamavid.formats.eight_bits import EightBits
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.fingerprint import fingerprint
from llamavid.model.random_checkpoint import write_random_checkpoint
from llamavid.model.random_weights import TINY
from llamavid.parity import relative_errors
from llamavid.runtime.parity import run_graph
from llamavid.scales import FORMAT_VERSION, Divided, GraphScales, Migration, Scales, Step
from tests.conftest import RUNNER
from tests.export.rtx import tensorrt_rtx

Array = np.ndarray[Any, Any]

WIDTH, HIDDEN = 176, 128  # of TINY's encoder and language model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("random") / "release"
    write_random_checkpoint(folder, TINY, seed=5)
    return open_checkpoint(folder / "checkpoint")


def products(checkpoint: Checkpoint, graph: str) -> list[str]:
    """Modules of a graph that are quantized, read off its float32 form."""
    prefix = {"vision": "vision.", "content": "compressor.", "llm": "language."}.get(graph, "")
    names = [name.removesuffix(".weight") for name in checkpoint.tensors if name.endswith(".weight")]
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    leave = ("norm", "embed", "patch_embed", "vision.", "language.")
    return [name for name in inside if not any(word in name for word in leave) and _belongs(name, graph)]


def _belongs(name: str, graph: str) -> bool:
    content = "content_projector" in name
    return content == (graph == "content") if graph in ("content", "context") else True


def calibration(checkpoint: Checkpoint, format: str, **changes: Any) -> Calibration:
    """Wide ranges, so that only rounding is left; a migration of every kind that graphs have."""
    random = np.random.default_rng(0)
    vectors = {
        name: random.uniform(0.5, 2, width).astype(np.float32)
        for name, width in (
            ("norm", WIDTH),
            ("value", WIDTH),
            ("image", WIDTH),
            ("llm", HIDDEN),
            ("o", HIDDEN),
        )
    }
    crossing = tuple(
        f"text_decoder.layers.{index}.cross_attention.{role}" for index in (0, 2) for role in ("key", "value")
    )
    block = "blocks.1"
    migrations = {
        "vision": (
            Migration(
                "norm",
                (Divided(f"{block}.norm1.weight"), Divided(f"{block}.norm1.bias")),
                (f"{block}.attn.qkv",),
            ),
            Migration(
                "value",
                (Divided(f"{block}.attn.qkv.weight", 2 * WIDTH), Divided(f"{block}.attn.v_bias")),
                (f"{block}.attn.proj",),
            ),
        ),
        "context": (
            Migration(
                "image",
                (Divided("text_decoder.image_norm.weight"), Divided("text_decoder.image_norm.bias")),
                crossing,
            ),
        ),
        "llm": (
            Migration(
                "llm",
                (Divided("model.layers.0.input_layernorm.weight"),),
                tuple(f"model.layers.0.self_attn.{role}_proj" for role in "qkv"),
            ),
            Migration(
                "o",
                (Divided("model.layers.0.self_attn.v_proj.weight"),),
                ("model.layers.0.self_attn.o_proj",),
            ),
        ),
    }
    graphs = {
        graph: GraphScales(
            format,
            {} if format == "int4" else {name: _step(name, format) for name in products(checkpoint, graph)},
            migrations=migrations.get(graph, ()),
            block=32 if format == "int4" else None,
        )
        for graph in ("vision", "content", "context", "llm")
    }
    scales = Scales(FORMAT_VERSION, "none", fingerprint(checkpoint), 64 * "b", 1, "", graphs)
    return Calibration(replace(scales, **changes), vectors)


def _step(name: str, format: str) -> Step:
    """What enters an MLP's second matrix or an attention's output is small in a random model."""
    small = any(word in name for word in ("o_proj", "down_proj", "fc2", "projector.2", "down", "output"))
    largest = 3.0 if small else 12.0
    return Step(largest, largest / EightBits(format).largest)


def outputs(
    checkpoint: Checkpoint, folder: Path, precision: Precision, found: Calibration | None
) -> dict[str, Array]:
    """Every output of the three frame graphs, on drawn inputs."""
    folder.mkdir()
    graphs = write_frame_graphs(checkpoint, folder, FrameTypes(precision, calibration=found))
    random = np.random.default_rng(1)
    vision = checkpoint.config.vision
    features = random.normal(size=(2, 1 + vision.patches, vision.width)).astype(np.float32)
    pixels = random.normal(size=(2, 3, vision.image_size, vision.image_size)).astype(np.float32)

    def run(name: str, **inputs: Array) -> dict[str, Array]:
        entry: GraphEntry = graphs[name]
        typed = {key: array.astype(entry.contract.spec(key).dtype.numpy) for key, array in inputs.items()}
        return run_graph(folder, entry, typed)

    ids = np.array([[2, 20, 30, 40, 3]])
    return (
        run("vision", pixels=pixels)
        | run("content", features=features)
        | run("context", features=features, question_ids=ids)
    )


def test_migrations_without_rounding_change_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """In float32 the migrated graphs are the plain ones to float32's precision."""
    plain = outputs(checkpoint, tmp_path / "plain", FP32, None)
    moved = outputs(checkpoint, tmp_path / "moved", FP32, calibration(checkpoint, "int4"))
    for name, expected in plain.items():
        assert relative_errors(expected, moved[name])[1] < 2e-5, name


@pytest.mark.parametrize("format", ["int8", "fp8", "int4"])
def test_calibrated_graphs_are_as_far_as_their_rounding(
    checkpoint: Checkpoint, tmp_path: Path, format: str
) -> None:
    plain = outputs(checkpoint, tmp_path / "plain", FP32, None)
    precision = frame_precision(format, compute=None, int4_block=32)
    found = outputs(checkpoint, tmp_path / "found", precision, calibration(checkpoint, format))
    for name in ("features", "content_tokens", "context_tokens"):
        assert 1e-3 < relative_errors(plain[name], found[name].astype(np.float32))[1] < 0.4, name


def keep(found: Calibration, graph: str, module: str) -> None:
    scales = found.scales.graphs[graph]
    steps = {name: step for name, step in scales.steps.items() if name != module}
    found.scales.graphs[graph] = replace(scales, steps=steps, kept=(module,))


def test_a_kept_module_has_no_rounding_around_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = calibration(checkpoint, "int8")
    keep(found, "vision", "blocks.2.mlp.fc2")
    outputs(checkpoint, tmp_path / "kept", INT8, found)
    graph = onnx.load(str(tmp_path / "kept" / "vision.onnx"), load_external_data=False).graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    assert types["blocks.2.mlp.fc2.weight"] == onnx.TensorProto.FLOAT
    assert types["blocks.2.mlp.fc1.weight"] == onnx.TensorProto.INT8


@pytest.mark.parametrize(("format", "compute"), [("int8", DType.FLOAT32), ("int4", DType.FLOAT32)])
def test_a_bundle_of_scales_alone_is_in_their_formats_and_compared(
    checkpoint: Checkpoint, tmp_path: Path, format: str, compute: DType
) -> None:
    """`export --scales` needs no other option; the language model's graphs share their levels, and
    TensorRT-RTX builds all of them, with a module kept in each network."""
    found = calibration(checkpoint, format)
    keep(found, "vision", "blocks.2.mlp.fc2")
    keep(found, "llm", "model.layers.1.mlp.down_proj")
    save_calibration(found, tmp_path / "scales.json")
    arguments = ["export", str(checkpoint.folder), "-o", str(tmp_path / "bundle"), "--json"]
    result = CliRunner().invoke(main, [*arguments, "--scales", str(tmp_path / "scales.json")])
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["parity"]
    assert {row["precision"] for row in rows} == {format}
    assert all(row["passed"] for row in rows)
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.graphs["llm"].contract.spec("inputs_embeds").dtype is compute
    levels = (tmp_path / "bundle" / "llm.onnx.data").stat().st_size
    weights = sum(np.prod(t.shape) for name, t in checkpoint.tensors.items() if name.startswith("language."))
    # A byte a weight, scales, 4 kB pages, and what is kept in two types: not once for each lowering.
    assert levels < 3 * weights
    tensorrt_rtx()
    built = CliRunner().invoke(main, ["build", str(tmp_path / "bundle"), "--target", "rtx-sm86"])
    assert built.exit_code == 0, built.stderr
    assert len(list((tmp_path / "bundle" / "engines" / "rtx-sm86").glob("*.engine"))) == 4
    copied = load_calibration(tmp_path / "bundle" / SCALES_FILE)
    assert copied.scales.graphs == load_calibration(tmp_path / "scales.json").scales.graphs


def test_a_wrong_step_of_the_language_model_fails_the_export(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Scales of the right names and another size: PyTorch rounded alike agrees, PyTorch as it is does not."""
    found = calibration(checkpoint, "int8")
    llm = found.scales.graphs["llm"]
    steps = {name: Step(1e4, 1e4 / 127) for name in llm.steps}
    found.scales.graphs["llm"] = replace(llm, steps=steps)
    save_calibration(found, tmp_path / "scales.json")
    options = ExportOptions(llm_precision="int8", scales=tmp_path / "scales.json")
    with pytest.raises(ParityError, match=r"graph llm(\.\w+)? \(int8\) differs from PyTorch"):
        export_bundle(checkpoint, tmp_path / "bundle", runner=RUNNER, options=options)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("graph", "change", "named"),
    [
        ("llm", {"kept": ("model.layers.0.mlp.down_prj",)}, "model.layers.0.mlp.down_prj.weight"),
        (
            "vision",
            {"migrations": (Migration("norm", (), ("blocks.9.attn.qkv",)),)},
            "blocks.9.attn.qkv.weight",
        ),
        ("vision", {"migrations": (Migration("norm", (Divided("norm9.bias"),), ()),)}, "norm9.bias"),
    ],
)
def test_scales_that_name_what_the_model_does_not_have_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, graph: str, change: dict[str, Any], named: str
) -> None:
    """A typing mistake: the module was rounded all the same, or its input divided and its weight not."""
    found = calibration(checkpoint, "int4")
    found.scales.graphs[graph] = replace(found.scales.graphs[graph], **change)
    save_calibration(found, tmp_path / "scales.json")
    with pytest.raises(ScalesError, match=f"'{named}' of graph {graph} does not exist"):
        opened_calibration(checkpoint, tmp_path / "scales.json")


def test_an_eight_bit_language_model_without_scales_says_how_to_make_them() -> None:
    with pytest.raises(UsageError, match=r"llm-precision fp8 without scales.*--llm-format fp8"):
        ExportOptions(llm_precision="fp8")
    with pytest.raises(UsageError, match="Leave both out: the scales say what they are for"):
        ExportOptions(precision="fp16", scales=Path("scales.json"))


def test_int4_in_other_blocks_than_the_scales_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_calibration(calibration(checkpoint, "int4"), tmp_path / "scales.json")
    options = ExportOptions(llm_precision="int4", int4_block=64, scales=tmp_path / "scales.json")
    with pytest.raises(
        ScalesError, match="int4 in blocks of 32 for graph llm; expected int4 in blocks of 64"
    ):
        export_bundle(checkpoint, tmp_path / "bundle", runner=RUNNER, options=options)
